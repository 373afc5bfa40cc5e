"""Moments of patches equal those of the patches written out, and so do their gradients."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from reparam import algebra
from reparam.branching.online import norms, toeplitz
from reparam.branching.online import rows as rows_
from reparam.branching.online.costs import choices
from reparam.branching.online.ways import way_of
from stepping import merged, merged_by_force, randomised, train_both
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
    (_patch((4, 1, 3, 3), padding=1, stride=2, groups=4), (2, 4, 5, 8)),
    (_patch((8, 1, 5, 5), padding=2, stride=(2, 1), groups=4), (2, 4, 8, 5)),
    (_patch((4, 1, 7, 3), padding=(3, 0), stride=3, groups=4), (2, 4, 9, 10)),
    (_patch((4, 1, 4), padding=1, stride=2, groups=4), (2, 4, 8)),
    (_patch((4, 1, 3, 3), padding=2, stride=2, groups=4), (2, 4, 1, 2)),
    (_patch((4, 1, 3, 3), padding=2, dilation=2, groups=4), (2, 4, 6, 5)),
    (_patch((6, 2, 3, 3), padding=1, stride=2, groups=2), (2, 4, 5, 6)),
    (_patch((6, 2, 1, 1), groups=2), (2, 4, 3, 4)),
    (_patch((6, 4, 1, 1), stride=2), (2, 4, 5, 6)),
    (_patch((3, 4)), (7, 4)),
    (_patch((2, 1, 3, 3, 3), padding=1, groups=2), (2, 2, 3, 4, 3)),
    (_patch((4, 1, 3, 3), padding=2, groups=4), (2, 4, 5, 4)),
]


@pytest.mark.parametrize(("patch", "shape"), PATCHES, ids=lambda v: str(v).replace(" ", ""))
def test_moments_and_the_way_back(patch: algebra.Geometry, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64) + 2
    mean, covariance = way_of(x, patch).moments(torch.float64)
    rows = _written_out(x, patch)
    centred = rows - rows.mean(2, keepdim=True)
    torch.testing.assert_close(mean, rows.mean(2), rtol=1e-12, atol=1e-13)
    expected = centred @ centred.mT / rows.shape[2]
    torch.testing.assert_close(covariance, expected, rtol=1e-12, atol=1e-13)

    half = torch.randn_like(covariance)
    matrix, shift, before = half + half.mT, torch.randn_like(mean), torch.randn_like(x)
    found = way_of(x, patch).gradient((matrix, shift), before, [])

    def total(x: torch.Tensor) -> torch.Tensor:
        rows = _written_out(x, patch)
        quadratic = (rows * (matrix @ rows)).sum() / 2
        return quadratic + (rows.sum(2) * shift).sum() + (x * before).sum()

    expected = torch.autograd.functional.jacobian(total, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("patch", "shape"), PATCHES[::3], ids=lambda v: str(v).replace(" ", ""))
def test_gradients_of_scales_and_shifts(patch: algebra.Geometry, shape: tuple[int, ...]) -> None:
    outputs = patch.out_channels
    kernels = [torch.randn(patch.kernel_shape, dtype=torch.float64) for _ in range(2)]
    count = shape[0] * math.prod(patch.output_size(shape[2:]))

    def pairs(x, first, second, weight, bias):
        branches = []
        for kernel in (first, second):
            norm = nn.BatchNorm2d(outputs, track_running_stats=False).double()
            norm._parameters.update(weight=weight, bias=bias)
            branches.append(norms.Branch(norm, kernel, (slice(None),) * patch.dims))
        same, found = norms.normalised(
            x, norms.Normalisation(patch, tuple(branches), count), way_of(x, patch)
        )
        return same, *(tensor for pair in found for tensor in pair)

    inputs = (
        torch.randn(shape, dtype=torch.float64) + 2, *kernels,
        torch.rand(outputs, dtype=torch.float64), torch.randn(outputs, dtype=torch.float64),
    )  # fmt: skip
    assert torch.autograd.gradcheck(pairs, [i.requires_grad_() for i in inputs], fast_mode=True)


@pytest.mark.parametrize(("patch", "shape"), [PATCHES[0], PATCHES[6], PATCHES[9]], ids=str)
def test_a_large_mean_costs_little_precision(
    patch: algebra.Geometry, shape: tuple[int, ...]
) -> None:
    """The mean is a thousand times the spread: not centred, squares would lose all digits."""
    shape = (4, shape[1], 24, 24)
    x = (torch.randn(shape, dtype=torch.float64) + 1000).float()
    rows = _written_out(x.double(), patch)
    inner = (rows - rows.mean(2, keepdim=True)).square().mean(2)
    _, covariance = way_of(x, patch).moments(torch.float32)
    found = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found.double(), inner, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("patch", "shape"), PATCHES, ids=lambda v: str(v).replace(" ", ""))
def test_moments_far_from_zero(patch, shape, monkeypatch) -> None:
    """There images are centred before they are squared, here in any case."""
    monkeypatch.setattr(toeplitz, "is_precise", lambda *_: False)
    monkeypatch.setattr(rows_, "is_precise", lambda *_: False)
    x = torch.randn(shape, dtype=torch.float64) + 30
    rows = _written_out(x, patch)
    centred = rows - rows.mean(2, keepdim=True)
    expected = centred @ centred.mT / rows.shape[2]
    _, covariance = way_of(x, patch).moments(torch.float64)
    torch.testing.assert_close(covariance, expected, rtol=1e-11, atol=1e-11)
    if isinstance(way_of(x, patch), toeplitz.Toeplitz) and (rows == 0).any():
        monkeypatch.setattr(toeplitz, "maps_of", _mean_beyond_the_border)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(way_of(x, patch).moments(torch.float64)[1], expected)


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
    online = merged_by_force(wide)
    for region in merged(online):
        region.merged = data.draw(st.sampled_from(choices(region.steps)))
    size = [data.draw(st.integers(4, 9)) for _ in range(2)]
    train_both(wide, online, [torch.randn(3, 4, *size, dtype=torch.float64)])


_FOLLOW, _MAPS = norms.follow, toeplitz.maps_of


def _biased(branches, means, variances, count):
    del count
    return _FOLLOW(branches, means, variances, 10**12)


def _uncentred(mean, covariance, count, group):
    del group
    return mean, covariance + mean.unsqueeze(2) * mean.unsqueeze(1), count


def _no_frame(*args):
    return dataclasses.replace(_MAPS(*args), strips=[])


def _mean_beyond_the_border(*args):
    """As if patches held the mean there, not zeros."""
    found = _MAPS(*args)
    return dataclasses.replace(found, present=torch.ones_like(found.present))


def _one_way(*args):
    """No convolution that gives the image its gradient."""
    found = _MAPS(*args)
    back = [dataclasses.replace(b, kernel=torch.zeros_like(b.kernel)) for b in found.back]
    return dataclasses.replace(found, back=back)


def _one_lag_off(*args):
    found = _MAPS(*args)
    return dataclasses.replace(found, products=found.products.roll(1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (norms, "follow", _biased),
        (norms, "_joined", _uncentred),
        (toeplitz, "maps_of", _no_frame),
        (toeplitz, "maps_of", _one_way),
        (toeplitz, "maps_of", _one_lag_off),
    ],
    ids=["biased variance", "uncentred", "no border", "nothing back", "one lag off"],
)
def test_a_seeded_error_is_found(module, name, wrong, stride, monkeypatch) -> None:
    block = MobileOneBlock(4, 4, groups=4, branches=2, stride=stride)
    # A layer before it, for the gradient of the block's input to reach.
    wide = randomised(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), block))
    online = merged_by_force(wide)
    batches = [torch.randn(3, 4, 6, 8, dtype=torch.float64) + 0.5]
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        train_both(wide, online, batches)
