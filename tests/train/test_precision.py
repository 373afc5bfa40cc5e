"""The precision of a run: what is fast on the processor, and what a resumed run began in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from reparam._support.processor import instruction_sets, multiplies_bf16
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.program import Conversion
from reparam.errors import MachineWarning
from reparam.lab.data import ImageData, open_data
from reparam.lab.training import Hardware, Recipe, load_recipe, train
from reparam.lab.training.preflight import resolve_precision

CPU = Hardware(accelerator="cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("digits")


@pytest.fixture
def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep oneDNN, and so PyTorch and OpenVINO, from instructions for bf16."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


def trained(digits: ImageData, out: Path, *, resume: bool = False, precision: str) -> Recipe:
    recipe = load_recipe("digits").override(epochs=1, precision=precision)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    return train(net, digits, recipe=recipe, out=out, hardware=CPU, resume=resume).recipe


def test_auto_is_what_the_processor_multiplies(digits: ImageData, tmp_path: Path) -> None:
    native = "bf16" if multiplies_bf16() else "fp32"
    assert trained(digits, tmp_path, precision="auto").precision == native


@pytest.mark.parametrize("limit", ["AVX2", "SSE41", "AVX512_CORE", "avx512_core_vnni"])
def test_a_limit_of_onednn_counts(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert not multiplies_bf16()
    assert resolve_precision(Recipe(precision="auto"), CPU, None).precision == "fp32"


def test_a_limit_that_leaves_bf16_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    native = multiplies_bf16()
    assert native == bool({"avx512_bf16", "amx_bf16", "sve_bf16"} & set(instruction_sets()))
    for limit in ("ALL", "AVX512_CORE_BF16", "AVX512_CORE_AMX"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert multiplies_bf16() == native


@pytest.mark.usefixtures("no_bf16")
def test_what_is_emulated_is_warned_of_and_done() -> None:
    with pytest.warns(MachineWarning, match="'auto' or 'fp32'"):
        assert resolve_precision(Recipe(precision="bf16"), CPU, None).precision == "bf16"


@pytest.mark.usefixtures("no_bf16")
def test_the_recipe_for_small_images_is_for_any_processor(
    recwarn: pytest.WarningsRecorder,
) -> None:
    assert resolve_precision(load_recipe("cifar10-fast"), CPU, None).precision == "fp32"
    assert not recwarn.list


@pytest.mark.parametrize(("began", "limit"), [("bf16", "AVX2"), ("fp32", "ALL")])
def test_a_resumed_run_keeps_its_precision(
    began: str, limit: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(digits, tmp_path, precision=began)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert trained(digits, tmp_path, resume=True, precision="auto").precision == began


@pytest.mark.usefixtures("no_bf16")
@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_an_engine_says_what_it_does_for_bf16(engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    x = torch.randn(2, 4)
    net = nn.Linear(4, 3).eval()
    with pytest.warns(MachineWarning, match="no instructions for bf16"):
        runner = get_engine(engine).prepare(Conversion(net, (x,)), Settings(1, "bf16"))
    torch.testing.assert_close(runner.run((x,))[0].float(), net(x), atol=0.05, rtol=0.05)
