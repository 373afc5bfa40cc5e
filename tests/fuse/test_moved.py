"""Norms that fold further away than into the next layer: behind means, layouts and blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from reparam import Why
from small_nets import Lambda, check, conv, image, norm


def flat(net: nn.Module, x: torch.Tensor) -> object:
    return net.c(net.b(net.a(x).relu()).flatten(2).transpose(1, 2))


def tokens(net: nn.Module, x: torch.Tensor) -> object:
    x = net.a(x).relu()
    size = x.shape
    return net.c(net.b(x).reshape(size[0], size[1], -1).transpose(-1, -2))


def tokens_of_another_size(net: nn.Module, x: torch.Tensor) -> object:
    """The channels are cut in two: the last axis mixes places and channels."""
    x = net.b(net.a(x).relu())
    return net.c(x.reshape(x.shape[0], -1, x.shape[1]))


@pytest.mark.parametrize(("forward", "left"), [(flat, 0), (tokens, 0), (tokens_of_another_size, 1)])
def test_a_norm_before_tokens_goes_into_the_linear_layer_behind(forward: object, left: int) -> None:
    check(Lambda(forward, conv(), norm(), nn.Linear(4, 3)), norms=left)


POOLS = [
    lambda x: x.mean((2, 3)),
    lambda x: torch.mean(x, dim=[-1, -2]),
    lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
]


@pytest.mark.parametrize("pool", POOLS, ids=range(len(POOLS)))
def test_a_norm_before_the_mean_goes_into_the_head(pool: object) -> None:
    net = Lambda(lambda s, x: s.c(pool(s.b(s.a(x) + x))), conv(), norm(), nn.Linear(4, 3))
    check(net, norms=0)


def test_a_norm_before_a_pooling_module_goes_into_the_head() -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Dropout(0.2))
    net = Lambda(lambda s, x: s.d(s.c(s.b(s.a(x) + x))), conv(), norm(), head, nn.Linear(4, 3))
    check(net, norms=0)


def test_a_norm_before_two_averaged_heads() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.b(net.a(x) + x).mean((2, 3))
        return (net.c(x) + net.d(x)) / 2

    check(Lambda(forward, conv(), norm(), nn.Linear(4, 3), nn.Linear(4, 3)), norms=0)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((1, 2)),
        lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1)[:, :4],
        lambda x: F.avg_pool2d(x, 3, 2, 1).mean((2, 3)),
        lambda x: x.std((2, 3)),
    ],
    ids=["over channels", "four places", "padded", "deviation"],
)
def test_what_is_no_mean_of_a_channel_keeps_its_norm(pool: object) -> None:
    net = Lambda(lambda s, x: s.c(pool(s.b(s.a(x).relu()))), conv(), norm(), nn.LazyLinear(3))
    net = net.double().eval()
    net(image())
    check(net, image(), norms=1)


def test_an_unpadded_average_lets_a_norm_through() -> None:
    net = Lambda(
        lambda s, x: s.c(F.avg_pool2d(s.b(s.a(x).relu()), 2).relu() * 1) + 0 * s.b.eps,
        conv(), norm(), conv(),
    )  # fmt: skip
    check(net, norms=1)
    net = Lambda(lambda s, x: s.c(F.avg_pool2d(s.b(s.a(x).relu()), 2)), conv(), norm(), conv(k=1))
    check(net, norms=0)


def test_an_average_along_the_channels_lets_no_norm_through() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x).relu().flatten(2).transpose(1, 2)
        return net.c(F.avg_pool1d(x * net.b.weight, 3, 1))

    net = Lambda(forward, conv(), norm(), nn.Linear(2, 3))
    check(net, image(2, 4, 3, 3))


def attention(net: nn.Module, x: torch.Tensor) -> object:
    """Queries of all places and keys of averaged ones, each side with a norm before it."""
    x = net.a(x).flatten(2).transpose(1, 2)
    query = net.b(x)
    x = net.c(F.avg_pool1d(x.transpose(1, 2), 3)).transpose(1, 2)
    return F.scaled_dot_product_attention(query, net.d(x), net.e(x))


def test_two_norms_in_a_row_go_into_all_layers_behind_them() -> None:
    linear = [nn.Linear(4, 4) for _ in range(3)]
    net = Lambda(attention, norm(), linear[0], nn.BatchNorm1d(4), *linear[1:])
    check(Lambda(lambda s, x: s.a(x.relu()), net), norms=0)


def test_a_norm_that_one_of_its_readers_cannot_take_stays_whole() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.b(net.a(x).relu())
        return net.c(x.mean((2, 3))), x.sigmoid()

    check(Lambda(forward, conv(), norm(), nn.Linear(4, 3)), norms=1)


@pytest.mark.parametrize("layer", [nn.AvgPool2d(1), conv(k=1, groups=4)], ids=["pool", "conv"])
def test_a_layer_on_the_image_does_not_go_to_the_tokens(layer: nn.Module) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x).permute(0, 2, 3, 1)
        return net.c(net.b(x).permute(0, 3, 1, 2)).mean((2, 3))

    check(Lambda(forward, conv(), nn.Linear(4, 4), layer))
    check(Lambda(lambda s, x: s.b(s.a(x.relu()).mean((2, 3))), layer, nn.Linear(4, 3)))


def test_a_norm_whose_input_changes_before_its_readers_run_stays() -> None:
    """Were it the identity, they would read the change."""

    def forward(net: nn.Module, x: torch.Tensor) -> object:
        y = net.a(x)
        x.relu_()
        return net.b(y), net.c(y.flatten(2).transpose(1, 2))

    net = Lambda(forward, norm(), conv(padding=0), nn.Linear(4, 3))
    check(net, norms=1)


def test_models_that_write_into_their_input_are_compared_on_the_same_numbers() -> None:
    x = image()
    before = x.clone()
    relu = nn.ReLU(inplace=True)
    assert not reparam.verify(nn.Sequential(nn.Identity(), relu), nn.Identity(), x).ok
    assert not reparam.verify(nn.Sequential(nn.Identity(), relu), nn.Softplus(), x).ok
    assert torch.equal(x, before)


# ------------------------------------------------------------------------------ shapes


def test_a_norm_of_which_the_shape_is_read_goes_into_the_layer_behind() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.b(net.a(x).relu())
        height = x.shape[-2]
        return net.c(x) / height

    check(Lambda(forward, conv(), norm(), conv(padding=0)), norms=0)


def test_a_shape_inside_of_a_region_is_not_that_of_its_output() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.b(net.a(x))
        return net.c(2 * x) / x.shape[-1]

    parts = conv(cout=40, k=1), norm(40), conv(40, 4, padding=0)
    check(Lambda(forward, *parts), convs=2, norms=0, because=Why.SHAPE_IS_READ)


# ------------------------------------------------------------------------------ blocks


class TwoKernels(nn.Module):
    """A block that has its own forward and something a caller may ask it for."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(padding=0), conv(padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.left(x) + self.right(x)).relu()

    def width(self) -> int:
        return 4


def test_a_block_that_takes_over_a_norm_stays_that_block() -> None:
    net = Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), TwoKernels())
    fused = check(net, convs=1, norms=0)
    block = fused.get_submodule("b")
    assert isinstance(block, TwoKernels)
    assert block.width() == 4
    x = image()
    torch.testing.assert_close(fused(x), block(fused.a(x.relu())))


class Times(nn.Module):
    """A layer, and a factor that depends on an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(padding=0)

    def forward(self, x: torch.Tensor, k: int = 2) -> torch.Tensor:
        return self.conv(x) * (k + 1)


@pytest.mark.parametrize("k", [2, 3])
def test_a_factor_that_the_caller_passes_is_that_of_the_call(k: int) -> None:
    check(Lambda(lambda s, x: s.b(s.a(x, k)), Times(), norm()), convs=1, norms=0)


def test_a_norm_that_two_layers_take_leaves_out_what_larger_images_change() -> None:
    """The norm goes into both layers; the factor behind one is another for larger images."""

    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x.relu())
        return net.b(x), net.c(x, 3 if x.shape[-1] > 9 else 2)

    net = Lambda(forward, norm(), conv(padding=0), Times())
    check(net, image(2, 4, 9, 8), image(2, 4, 12, 12), norms=0)
