"""Parts that code which cannot be read uses in another way than by calling them as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reparam
from zoo import randomise

CONV = {"kernel_size": 3, "padding": 1}


def _made(kind: type[nn.Module]) -> nn.Module:
    model = kind()
    randomise(model)
    return model.double().eval()


def _sequence() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, **CONV), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, **CONV), nn.BatchNorm2d(4)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _Unread(nn.Module):
    """Its forward has a line that only a run can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.whole, self.row = _Block(), _Block(), _sequence()

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.use(x * float(x.detach().numpy().size > 0)))

    def use(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Parts(_Unread):
    def use(self, x: Tensor) -> Tensor:
        y = self.row[0](x)
        return y + self.row[1](y)


class _Loop(_Unread):
    def use(self, x: Tensor) -> Tensor:
        total = x
        for layer in self.row:
            x = layer(x)
            total = total + x
        return total


class _Weights(_Unread):
    def use(self, x: Tensor) -> Tensor:
        return self.row(x) * self.row[0].weight.mean()


class _Method(_Unread):
    def use(self, x: Tensor) -> Tensor:
        return self.used.features(x)


class _OtherName(_Unread):
    def use(self, x: Tensor) -> Tensor:
        block = self.used
        return block(x) + block.conv(x)


class _PartAlone(_Unread):
    def use(self, x: Tensor) -> Tensor:
        return vars(self)["_modules"]["used"].bn(x)


class _Rewritten(_Unread):
    """As a block that computes its deployed weights anew in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.deployed = nn.Conv2d(4, 4, **CONV)

    def use(self, x: Tensor) -> Tensor:
        self.deployed.weight.data.copy_(self.row[0].weight.detach() * 2)
        return self.deployed(x)


@pytest.mark.parametrize("given", [True, False], ids=["example", "no-example"])
@pytest.mark.parametrize(
    "kind",
    [_Parts, _Loop, _Weights, _Method, _OtherName, _PartAlone, _Rewritten],
    ids=lambda kind: kind.__name__.strip("_"),
)
@pytest.mark.filterwarnings("ignore::reparam.FoldWarning")
def test_a_part_that_is_used_in_another_way_keeps_its_layers(
    *, kind: type[_Unread], given: bool
) -> None:
    model = _made(kind)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = reparam.fuse(model, x if given else None)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.whole.modules())  # it still folds


class _Forwarded(_Unread):
    def use(self, x: Tensor) -> Tensor:
        return self.used.forward(x)


def test_a_part_whose_forward_is_called_by_name_folds() -> None:
    model = _made(_Forwarded)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    fused = reparam.fuse(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.used.modules())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)


class _Numbers(nn.Module):
    """Holds no parameters, and numbers of another type than the usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.more = (nn.BatchNorm2d(4, affine=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.norm(x.tanh()) / 3 + 1)


class _Cut(nn.Module):
    """Reads other sizes than the first layer behind its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.ConvTranspose2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.chunk(2, 1)[0]))


@pytest.mark.parametrize("kind", [_Numbers, _Cut])
def test_inputs_that_were_made_up_need_not_fit(kind: type[nn.Module]) -> None:
    model = _made(kind)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(reparam.fuse(model)(x), model(x), rtol=1e-12, atol=1e-12)


class _Spectral(nn.Module):
    """Asks torch for the sizes of a value that only torch's own code can answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, dim=(-2, -1))
        return self.bn(self.conv(torch.fft.irfftn(spectrum, s=x.shape[-2:], dim=(-2, -1))))


def test_a_size_that_is_given_as_a_whole_does_not_end_the_trace() -> None:
    model = _made(_Spectral)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    fused = reparam.fuse(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)
