"""Models of transformers, fused, saved by their own method, and read back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam

transformers = pytest.importorskip("transformers")

from reparam.integrations.hugging_face import build, load_pretrained  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers has warnings of its own


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return transformers.ResNetForImageClassification(config).eval()


def rt_detr() -> nn.Module:
    """Of a class that stores its weights under names of an older version."""
    config = transformers.RTDetrConfig(
        backbone_config=transformers.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_in_channels=[8, 8, 8], encoder_hidden_dim=16, encoder_ffn_dim=16, d_model=16,
        decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16, decoder_layers=1, num_queries=5,
        encoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, num_denoising=0,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config).eval()


@pytest.mark.parametrize("make", [resnet, pytest.param(rt_detr, marks=pytest.mark.slow)])
def test_what_save_pretrained_wrote_is_read(make, tmp_path) -> None:
    model, x = make(), torch.randn(1, 3, 224, 224)
    fused = reparam.fuse(model, {"pixel_values": x})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    fused.save_pretrained(tmp_path / "fused")
    model.save_pretrained(tmp_path / "train")
    for folder, expected in (("fused", fused), ("train", model)):
        again = load_pretrained(tmp_path / folder)
        assert type(again) is type(model)
        assert not again.training
        state = again.state_dict()
        assert state.keys() == expected.state_dict().keys()
        assert all(torch.equal(state[k], v) for k, v in expected.state_dict().items())
        assert type(again(x)) is type(model(x))


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    model = resnet()
    model.config.save_pretrained(tmp_path)
    files = pytest.importorskip("safetensors.torch")
    files.save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(reparam.ReparamError, match="weight"):
        load_pretrained(tmp_path)


def test_folders_that_hold_no_model(tmp_path) -> None:
    with pytest.raises(reparam.ReparamError, match=r"config\.json"):
        build(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "none of theirs"}')
    with pytest.raises(reparam.ReparamError, match=r"config\.json"):
        build(tmp_path)
    resnet().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(reparam.ReparamError, match="pickle"):
        load_pretrained(tmp_path)


def test_a_model_output_is_compared_once(tmp_path) -> None:
    model, x = resnet(), torch.randn(1, 3, 64, 64)
    fused = reparam.fuse(model, {"pixel_values": x})
    result = reparam.export(fused, tmp_path / "net.pt2", x, reference=model, dynamic=False)
    assert result.parity.ok
