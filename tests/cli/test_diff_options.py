"""``reparam diff`` loads checkpoints as its siblings do."""

from __future__ import annotations

from pathlib import Path

import torch

from reparam.models import RepVGG, RepVGGSpec


def test_an_entry_and_weights_that_match_in_part(reparam_command, tiny: str, folder: Path) -> None:
    spec = RepVGGSpec(depths=(2,), widths=(4,), stem_width=4, stem_stride=1, strides=1)
    state = RepVGG(spec, num_classes=3).state_dict()  # that of the module's net
    torch.save({"mine": {"net": state}, "other": {"net": state}}, folder / "two.pth")
    torch.save(state | {"more": torch.ones(1)}, folder / "more.pth")
    both = [f"{tiny}:net", f"{tiny}:net", "--size", "8"]
    plain = reparam_command("fuse", both[0], "-w", "two.pth", "--key", "mine.net", "--size", "8",
                            "-o", "fused.onnx")  # fmt: skip
    assert plain.code == 0, plain.err
    same = [f"{tiny}:net", "fused.onnx"]
    ran = reparam_command("diff", *same, "-w", "two.pth", "--key", "mine.net")
    assert ran.code == 0, ran.err
    ran = reparam_command("diff", *same, "-w", "more.pth")
    assert ran.code == 2
    assert "--no-strict" in ran.err
    assert reparam_command("diff", *same, "-w", "more.pth", "--no-strict").code == 0
    for option in (["--key", "mine"], ["--no-strict"]):
        assert reparam_command("diff", *both, *option).code == 2
    ran = reparam_command("diff", *same, "-w", "two.pth", "--key", "mine.net", "--num-classes", "3")
    assert ran.code == 2  # the factory takes none; the file does not mind
    assert "a file with its own weights" not in ran.err
