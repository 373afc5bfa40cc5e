"""One line that cannot be traced loses that line: layers that run one behind the other fold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from checking import Snapshot
from zoo import randomise

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """Numbers are taken out of tensors here, of which torch warns where they have gradients."""
    with torch.no_grad():
        yield


class Two(nn.Module):
    """Two layers with a norm each, and two in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.d, self.e = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)])
        randomise(self)


def model(forward: Forward) -> nn.Module:
    kind = type("Net", (Two,), {"forward": forward})
    return kind().double().eval()


def x(batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, 4, size, size + 2, dtype=torch.float64)


def norms_left(net: nn.Module, names: str) -> int:
    return sum(isinstance(net.get_submodule(name), nn.BatchNorm2d) for name in names)


def halved(m: Any, v: torch.Tensor) -> torch.Tensor:
    v = m.b(m.c(v))
    while float(v.abs().max()) > 1:
        v = v / 2
    return m.e(m.d(v))


def through_numpy(m: Any, v: torch.Tensor) -> torch.Tensor:
    v = m.b(m.c(v))
    return m.e(m.d(torch.from_numpy(v.detach().numpy() * 2)))


def in_statements(m: Any, v: torch.Tensor) -> torch.Tensor:
    v = m.c(v)
    v = m.b(v)
    v = torch.from_numpy(v.detach().numpy())
    v = m.d(v)
    return m.e(v).relu()


def as_numbers(m: Any, v: torch.Tensor) -> torch.Tensor:
    v = m.b(m.c(v))
    return m.e(m.d(v)) * v.mean((0, 2, 3)).tolist()[0]


def printed(m: Any, v: torch.Tensor) -> torch.Tensor:
    y = m.b(m.c(v))
    str(float(y.mean()))
    return m.e(m.d(y))


def counted(m: Any, v: torch.Tensor) -> torch.Tensor:
    y = m.b(m.c(v))
    return m.e(m.d(y)) + len(torch.unique(y.argmax(1)))


def decided(m: Any, v: torch.Tensor) -> torch.Tensor:
    y = m.b(m.c(v))
    if y.sum() > 0:
        y = -y
    return m.e(m.d(y))


FOLDS = [halved, through_numpy, in_statements, as_numbers, printed, counted, decided]


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("how", FOLDS)
def test_what_runs_one_behind_the_other_folds(how: Forward, *, example: bool) -> None:
    net = model(how)
    before = Snapshot.of(net)
    fused = reparam.fuse(net, x() if example else None)
    before.assert_unchanged(net)
    assert norms_left(fused, "be") == 0
    for v in (x(), x(3, 12)):
        torch.testing.assert_close(fused(v), net(v), rtol=1e-10, atol=1e-11)
    changed = copy.deepcopy(fused)
    with torch.no_grad():
        changed.c.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(AssertionError):
        torch.testing.assert_close(changed(x()), net(x()), rtol=1e-10, atol=1e-11)


def read_again(m: Any, v: torch.Tensor) -> torch.Tensor:
    y = m.c(v)
    v = m.b(y)
    return v * float(y.mean())


def called_again(m: Any, v: torch.Tensor) -> torch.Tensor:
    v = m.b(m.c(v)) * float(v.mean())
    return m.c(v)


def its_weight_read(m: Any, v: torch.Tensor) -> torch.Tensor:
    return m.b(m.c(v)) * float(m.c.weight.mean() * v.mean())


def all_modules(m: Any, v: torch.Tensor) -> torch.Tensor:
    y = m.b(m.c(v)) * float(v.mean())
    return y + sum(float(p.sum()) for p in m.parameters())


def handed_on(m: Any, v: torch.Tensor) -> torch.Tensor:
    return m.b(m.c(v)) * float(v.mean()) + first_layer(m)(v)


def first_layer(m: Any) -> nn.Module:
    return m.c


def one_of_several(m: Any, v: torch.Tensor) -> torch.Tensor:
    v = m.layers[1](m.layers[0](v)) * float(v.mean())
    for layer in m.layers:
        v = layer(v)
    return v


def read_later(m: Any, v: torch.Tensor) -> torch.Tensor:
    y = m.c(v)
    later = y.mean
    y2 = m.b(y)
    return y2 * float(later())


LEFT = [
    read_again, called_again, its_weight_read, all_modules, handed_on, one_of_several,
    read_later,
]  # fmt: skip


@pytest.mark.parametrize("how", LEFT)
def test_what_is_read_elsewhere_is_left(how: Forward) -> None:
    net = model(how)
    fused = reparam.fuse(net, x())
    for v in (x(), x(3, 12)):
        torch.testing.assert_close(fused(v), net(v), rtol=1e-10, atol=1e-11)
    assert isinstance(fused.b, nn.BatchNorm2d)
    assert isinstance(fused.layers[1], nn.BatchNorm2d)


def test_a_hook_between_is_heeded() -> None:
    net, seen = model(halved), []
    net.c.register_forward_hook(lambda *given: seen.append(given))
    fused = reparam.fuse(net, x())
    assert isinstance(fused.b, nn.BatchNorm2d)
    assert isinstance(fused.e, nn.Identity)
