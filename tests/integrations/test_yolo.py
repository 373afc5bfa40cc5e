"""YOLO of ultralytics, built by ultralytics itself; `make test-libraries` installs it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
from reparam.cli.options import Target
from reparam.cli.targets import load_model
from reparam.errors import InputError
from reparam.models.lookup import resolve

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def ultralytics():
    return pytest.importorskip("ultralytics")


@pytest.fixture
def yolo(ultralytics):
    """A net with the blocks of a YOLO, its norms calibrated."""
    made = ultralytics.YOLO("yolov9t.yaml", verbose=False)
    made.model.train()
    with torch.no_grad():
        for _ in range(2):
            made.model(torch.rand(2, 3, 64, 64))
    made.model.eval()
    return made


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_a_config_and_a_file_of_theirs_are_models(yolo, tmp_path) -> None:
    built = resolve("ultralytics:yolov9t.yaml")
    assert norms(built) == norms(yolo.model) > 100
    yolo.save(tmp_path / "mine.pt")
    loaded = load_model(Target(name=f"ultralytics:{tmp_path / 'mine.pt'}")).model
    x = torch.rand(1, 3, 64, 64)
    # Their file holds half precision.
    torch.testing.assert_close(loaded(x)[0], yolo.model(x)[0], rtol=2e-2, atol=0.5)
    with pytest.raises(InputError, match="no such file"):
        resolve(f"ultralytics:{tmp_path / 'other.pt'}")
    with pytest.raises(reparam.ReparamError, match="ultralytics:"):
        reparam.load_checkpoint(built, tmp_path / "mine.pt")


def test_the_fused_net_predicts_and_a_wrong_kernel_is_seen(yolo) -> None:
    from reparam.integrations.ultralytics import fuse

    fused, x = fuse(yolo), torch.rand(1, 3, 64, 96)
    assert norms(fused.model) == 0 < norms(yolo.model)
    verdict = reparam.verify(yolo.model, fused.model, x)
    assert verdict.ok
    image = (torch.rand(64, 96, 3) * 255).byte().numpy()
    (found,) = fused.predict(image, verbose=False, imgsz=64)
    assert found.orig_shape == (64, 96)
    assert norms(yolo.model) > 100  # theirs is as it was
    with torch.no_grad():
        fused.model.model[-1].cv2[0][-1].bias[0] += 0.1  # a coordinate of a level
    assert not reparam.verify(yolo.model, fused.model, x).ok
