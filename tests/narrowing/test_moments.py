"""Moments of patches equal those of the patches written out, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import reparam
from reparam import algebra
from reparam.narrowing import region as running
from reparam.narrowing import toeplitz
from reparam.narrowing.costs import choices
from reparam.narrowing.moments import moments
from reparam.narrowing.placing import regions_of
from stepping import randomised, train_both
from zoo.mobile import MobileOneBlock


def _written_out(x: torch.Tensor, patch: algebra.Geometry) -> torch.Tensor:
    """Patches by definition, ``(groups, D, n)``: what one-tap kernels make of the input."""
    channels, width = patch.in_channels, patch.in_channels // patch.groups * patch.taps
    kernel = torch.eye(width, dtype=x.dtype).repeat(patch.groups, 1)
    wide = algebra.Geometry(
        channels, patch.groups * width, patch.groups, patch.offsets, patch.stride, patch.extent
    )
    op = algebra.AffineConv(wide, kernel.reshape(wide.kernel_shape))
    y = op(x)
    rows = y.movedim(1, 0).flatten(1) if x.dim() > 2 else y.T
    return rows.unflatten(0, (patch.groups, width))


def _patch(shape: tuple[int, ...], **options: int) -> algebra.Geometry:
    return algebra.conv_geometry(shape, **options)


PATCHES = [
    (_patch((6, 1, 3, 3), padding=1, groups=6), (2, 6, 5, 6)),
    (_patch((4, 1, 3, 3), groups=4), (2, 4, 5, 4)),
    (_patch((4, 1, 5, 5), padding=2, groups=4), (2, 4, 6, 5)),
    (_patch((4, 1, 7, 7), padding=3, groups=4), (2, 4, 7, 3)),
    (_patch((4, 1, 2, 4), padding=1, groups=4), (2, 4, 4, 5)),
    (_patch((4, 1, 3), padding=1, groups=4), (2, 4, 7)),
    (_patch((4, 1, 3, 3), padding=1, stride=2, groups=4), (2, 4, 6, 5)),
    (_patch((4, 1, 3, 3), padding=2, dilation=2, groups=4), (2, 4, 6, 5)),
    (_patch((6, 2, 3, 3), padding=1, stride=2, groups=2), (2, 4, 5, 6)),
    (_patch((6, 2, 1, 1), groups=2), (2, 4, 3, 4)),
    (_patch((6, 4, 1, 1), stride=2), (2, 4, 5, 6)),
    (_patch((3, 4)), (7, 4)),
    (_patch((2, 1, 3, 3, 3), padding=1, groups=2), (2, 2, 3, 4, 3)),
]


@pytest.mark.parametrize(("patch", "shape"), PATCHES, ids=lambda v: str(v).replace(" ", ""))
def test_moments_and_gradients(patch: algebra.Geometry, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, dtype=torch.float64) + 2).requires_grad_()
    same, mean, covariance = moments(x, patch)
    rows = _written_out(x.detach(), patch)
    centred = rows - rows.mean(2, keepdim=True)
    torch.testing.assert_close(mean, rows.mean(2), rtol=1e-12, atol=1e-13)
    expected = centred @ centred.mT / rows.shape[2]
    torch.testing.assert_close(covariance, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(same, x)
    assert torch.autograd.gradcheck(lambda x: moments(x, patch), (x,), fast_mode=True)


@pytest.mark.parametrize(("patch", "shape"), [PATCHES[0], PATCHES[6], PATCHES[9]], ids=str)
def test_a_large_mean_costs_little_precision(
    patch: algebra.Geometry, shape: tuple[int, ...]
) -> None:
    """The mean is a thousand times the spread: not centred, squares would lose all digits."""
    shape = (4, shape[1], 24, 24)
    x = torch.randn(shape, dtype=torch.float64) + 1000
    rows = _written_out(x.float().double(), patch)
    inner = (rows - rows.mean(2, keepdim=True)).square().mean(2)
    found = moments(x.float(), patch)[2].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found.double(), inner, rtol=1e-3, atol=0)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_blocks_train_alike(data: st.DataObject) -> None:
    """Branches, kernels, groups, stride, dilation, padding: whatever merges, merges exactly."""
    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel = data.draw(st.sampled_from([1, 3, 5] if groups == 4 else [1, 3]))
    wide = randomised(
        MobileOneBlock(
            4, data.draw(st.sampled_from([4, 8])), kernel=kernel, groups=groups,
            stride=data.draw(st.sampled_from([1, 2])),
            dilation=data.draw(st.sampled_from([1, 2])) if kernel > 1 else 1,
            branches=data.draw(st.integers(1, 3)),
        ),
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    plan = reparam.online_plan(
        wide, torch.empty(64, 4, 112, 112, dtype=torch.float64, device="meta")
    )
    online = plan.apply()
    for region in regions_of(online):
        region.merged = data.draw(st.sampled_from(choices(region.steps)))
    size = [data.draw(st.integers(4, 9)) for _ in range(2)]
    train_both(wide, online, [torch.randn(3, 4, *size, dtype=torch.float64)])


def _biased(norms, means, variances, count):
    del count
    return _SCALES(norms, means, variances, 10**12)


def _uncentred(x, patch):
    same, mean, covariance = moments(x, patch)
    return same, mean, covariance + mean.unsqueeze(2) * mean.unsqueeze(1)


_SCALES = running.scales


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (running, "scales", _biased),
        (running, "moments", _uncentred),
        (toeplitz, "_subtract_lines", lambda *_: None),
        (toeplitz, "_return_lines", lambda *_: None),
        (toeplitz.Toeplitz, "_corners", lambda _self: iter(())),
    ],
    ids=["biased variance", "uncentred", "no borders", "no borders back", "no corners"],
)
def test_a_seeded_error_is_found(module, name, wrong, monkeypatch) -> None:
    block = MobileOneBlock(4, 4, groups=4, branches=2)
    # A layer before it, for the gradient of the block's input to reach.
    wide = randomised(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), block))
    online = reparam.online(wide, torch.empty(64, 4, 112, 112, dtype=torch.float64, device="meta"))
    (region,) = regions_of(online)
    region.merged = choices(region.steps)[-1]
    batches = [torch.randn(3, 4, 6, 7, dtype=torch.float64) + 0.5]
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        train_both(wide, online, batches)
