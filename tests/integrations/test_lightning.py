"""The Lightning callback, on a net that trains for a moment."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import reparam

pl = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint  # noqa: E402

from reparam.integrations.lightning import FuseAtEnd  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has advice on loaders and devices


class Lit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
        )  # fmt: skip
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, _):
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Whole(Lit):
    """The forward of the module itself does something with what its children return."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)

    def forward(self, x):
        return self.more(self.model(x))


def data() -> torch.utils.data.DataLoader:
    images = torch.randn(24, 3, 8, 8)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, images.mean((1, 2, 3)).gt(0).long()), batch_size=6
    )


def fit(module, folder, *callbacks, checkpoints: bool = False, **settings):
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=checkpoints,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=list(callbacks), num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    trainer.fit(module, data(), data())
    return trainer


def assert_fused_from(end: FuseAtEnd, trained: nn.Module) -> None:
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(end.fused(x), copy.deepcopy(trained).eval()(x), rtol=1e-5, atol=1e-6)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in end.fused.modules())
    assert end.verdict.ok


def test_the_trained_net_is_fused_and_written(tmp_path) -> None:
    module, end = Lit(), FuseAtEnd(tmp_path / "net.safetensors")
    fit(module, tmp_path, end)
    assert_fused_from(end, module.model)
    again = reparam.load_fused(Lit().model, tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(x), end.fused(x))
    assert isinstance(module.model[1], nn.BatchNorm2d)
    assert "1 regions folded" in str(end)


def test_the_module_itself_where_it_has_several_children(tmp_path) -> None:
    module, end = Whole(), FuseAtEnd()
    fit(module, tmp_path, end)
    assert_fused_from(end, module)
    named = FuseAtEnd(net="model")
    fit(module, tmp_path, named)
    assert_fused_from(named, module.model)


def test_averaged_weights_are_what_is_fused(tmp_path) -> None:
    class Keep(pl.Callback):
        def on_train_batch_end(self, *arguments):
            self.last = copy.deepcopy(arguments[1].model.state_dict())

    module, end, keep = Lit(), FuseAtEnd(), Keep()
    fit(module, tmp_path, end, keep, EMAWeightAveraging(decay=0.9))
    assert_fused_from(end, module.model)
    own = Lit().model
    own.load_state_dict(keep.last)
    assert not torch.allclose(own.eval()(x := torch.randn(2, 3, 8, 8)), end.fused(x), atol=1e-4)


def test_the_best_checkpoint(tmp_path) -> None:
    saved = ModelCheckpoint(tmp_path, monitor="loss", filename="{epoch}", save_top_k=1)
    module, end = Lit(), FuseAtEnd(weights="best")
    fit(module, tmp_path, saved, end, checkpoints=True)
    best = Lit()
    best.load_state_dict(torch.load(saved.best_model_path, weights_only=True)["state_dict"])
    assert_fused_from(end, best.model)


def test_the_example_of_the_module(tmp_path) -> None:
    module, end = Lit(), FuseAtEnd()
    module.example_input_array = torch.randn(2, 3, 10, 10)
    fit(module, tmp_path, end)
    assert end.plan.regions[0].positions == 200


@pytest.mark.parametrize(
    "made",
    [
        lambda to: FuseAtEnd(to / "net.what"),
        lambda to: FuseAtEnd(to / "no" / "folder" / "net.onnx"),
        lambda _: FuseAtEnd(net="nothing"),
    ],
)
def test_what_would_fail_is_refused_before_training(made, tmp_path) -> None:
    class Untrained(Lit):
        def training_step(self, *_):
            pytest.fail("it has begun")

    with pytest.raises(reparam.ReparamError):
        fit(Untrained(), tmp_path, made(tmp_path))


def test_arguments_that_are_none(tmp_path) -> None:
    with pytest.raises(reparam.ReparamError):
        FuseAtEnd(weights="newest")
    with pytest.raises(reparam.ReparamError):
        FuseAtEnd(3)
    with pytest.raises(reparam.ReparamError, match="ModelCheckpoint"):
        fit(Lit(), tmp_path, FuseAtEnd(weights="best"))


def test_a_fast_run_writes_nothing(tmp_path) -> None:
    end = FuseAtEnd(tmp_path / "net.safetensors")
    fit(Lit(), tmp_path, end, fast_dev_run=True)
    assert end.verdict.ok
    assert not (tmp_path / "net.safetensors").exists()
