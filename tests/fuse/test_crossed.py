"""Norms that fold across what moves, averages or picks the elements of channels, and sums.

Each operation has a partner that looks like it and is not exact, whose norm must stay.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise

WIDE = image(2, 4, 10, 8), image(3, 4, 6, 12)


def behind(step: object, channels: int = 4, made: int = 4) -> Lambda:
    """conv, the step, norm, relu."""
    return Lambda(lambda s, x: s.b(step(s.a(x))).relu(), conv(4, made), norm(channels))


def before(step: object, channels: int = 4, reader: nn.Module | None = None) -> Lambda:
    """relu, norm, the step, 1x1 convolution."""
    last = reader or conv(channels, 3, k=1, bias=True)
    return Lambda(lambda s, x: s.b(step(s.a(x.relu()))), norm(), last)


def with_factors(net: nn.Module, sign: int) -> nn.Module:
    """Draw numbers, and let some factors of norms have a sign and the others be positive."""
    net = randomise(net.double())
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.abs_()[::2] *= sign
    return net


def left_of(net: nn.Module) -> int:
    """Fuse a net with the numbers that it has, compare, and count the norms that are left."""
    fused = reparam.fuse(net, WIDE[0])
    for x in WIDE:
        assert_same_function(net, fused, x, tolerance=TOLERANCE)
    return count(fused, WIDE[0])[1].norms


# ------------------------------------------------------------------------------ positions


SPREAD = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, size=(7, 5), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, corners aligned": lambda x: F.interpolate(
        x, size=(5, 13), mode="bilinear", align_corners=True
    ),
    "bilinear, antialiased": lambda x: F.interpolate(
        x, size=(5, 3), mode="bilinear", antialias=True
    ),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "area": lambda x: F.interpolate(x, size=(4, 3), mode="area"),
    "as large as another": lambda x: F.interpolate(x, size=(2 * x.shape[2], x.shape[3])),
    "module": nn.Upsample(scale_factor=2, mode="bilinear"),
    "reflected": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "replicated": lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 1, 2, 2), mode="circular"),
    "reflecting module": nn.ReflectionPad2d((0, 1, 2, 1)),
    "replicating module": nn.ReplicationPad2d(1),
    "average": lambda x: F.avg_pool2d(x, 2),
    "average of what is there": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average, windows cut off": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average of places": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "rolled": lambda x: x.roll((1, -1), (2, 3)),
    "flipped": lambda x: x.flip(3),
    "one more axis": lambda x: x.unsqueeze(2).mean(2),
    "and off again": lambda x: x[:, :, None, ..., None].squeeze(2).squeeze(-1),
    "axes exchanged and back": lambda x: x.movedim(1, -1).swapaxes(1, 2).moveaxis(3, 1),
    "names of NumPy": lambda x: x.unsqueeze(2).mean(axis=2, keepdims=False),
    "every other": lambda x: x[..., 1::2, ::3],
    "a piece": lambda x: x.narrow(2, 1, 3)[:, :, [0, 2]],
    "a half": lambda x: x.tensor_split(2, -1)[0],
    "turned": lambda x: x.rot90(1, (2, 3)),
    "windows": lambda x: x.unfold(3, 3, 2).flatten(3),
    "rows twice": lambda x: x.repeat_interleave(2, dim=2),
    "pixels twice": lambda x: x[:, :, :, None].expand(-1, -1, -1, 2, -1).mean(3),
    "tokens and back": lambda x: x.flatten(2).view(x.shape[0], 4, x.shape[2], x.shape[3]),
}


@pytest.mark.parametrize("step", SPREAD.values(), ids=SPREAD)
def test_a_norm_passes_a_weighted_mean_of_positions_both_ways(step: object) -> None:
    check(behind(step), *WIDE, norms=0)
    check(before(step), *WIDE, norms=0)


ALMOST = {
    "zero padding": lambda x: F.pad(x, (1, 1, 1, 1)),
    "average of zeros": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "cut windows with zeros": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "another divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "squares": lambda x: F.lp_pool2d(x, 2, 2),
    "over all that there is": lambda x: x.roll(1),
}


@pytest.mark.parametrize("step", ALMOST.values(), ids=ALMOST)
def test_where_weights_do_not_sum_to_one_the_norm_stays(step: object) -> None:
    check(behind(step), *WIDE, norms=1)
    check(before(step), *WIDE, norms=1)


LARGEST = {
    "max": lambda x: F.max_pool2d(x, 2),
    "max of some": lambda x: F.max_pool2d(x, 3, 2, 1, 1, ceil_mode=True),
    "max module": nn.MaxPool2d(3, 2, 1, dilation=1),
    "max of places": lambda x: F.adaptive_max_pool2d(x, 2),
    "largest": lambda x: x.amax((2, 3), keepdim=True),
}


@pytest.mark.parametrize("step", LARGEST.values(), ids=LARGEST)
@pytest.mark.parametrize("place", [behind, before])
def test_a_norm_passes_a_maximum_where_no_factor_is_negative(place: object, step: object) -> None:
    assert left_of(with_factors(place(step), 1)) == 0
    assert left_of(with_factors(place(step), 0)) == 0
    assert left_of(with_factors(place(step), -1)) == 1


def test_a_maximum_whose_indices_are_read_keeps_its_norm() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x, places = F.max_pool2d(net.a(x), 2, return_indices=True)
        return net.b(x), places

    check(Lambda(forward, conv(), norm()), *WIDE, norms=1)


def test_a_pooling_that_takes_channels_for_positions_keeps_its_norm() -> None:
    """``MaxPool2d`` of ``(batch, channels, length)`` pools over the channels, too."""
    net = Lambda(
        lambda s, x: s.b(F.max_pool2d(s.a(x), (1, 2))), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)
    )
    check(net, image(2, 4, 9), norms=1)
    net = Lambda(
        lambda s, x: s.b(F.adaptive_max_pool2d(s.a(x), (4, 3))),
        nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4),
    )  # fmt: skip
    check(net, image(2, 4, 9), norms=1)


def test_a_norm_before_a_layer_that_reflects_its_border() -> None:
    check(Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), conv(padding_mode="reflect")), norms=0)
    check(Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), conv()), norms=1)


def test_a_norm_before_two_layers_that_reflect_their_border_alike() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x.relu())
        return net.b(x).relu(), net.c(x)

    layers = (conv(k=2, padding=1, padding_mode="reflect", stride=step) for step in (1, 2))
    check(Lambda(forward, norm(), *layers), norms=0)


@pytest.mark.parametrize(("size", "padding"), [(2, 0), (3, 1), (4, 1)])
def test_a_norm_before_a_transposed_layer_stays(size: int, padding: int) -> None:
    """Its shift comes out as another number at every other position, which no bias is."""
    layer = nn.ConvTranspose2d(4, 4, size, 2, padding)
    check(Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), layer), norms=1)


def test_a_norm_passes_no_hook() -> None:
    """What a hook between them sees is what the convolution returns, without the norm."""
    net = behind(nn.Upsample(scale_factor=2))
    net.step = nn.Upsample(scale_factor=2)
    net.run = lambda s, x: s.b(s.step(s.a(x))).relu()
    seen: list[torch.Tensor] = []
    handle = net.step.register_forward_hook(lambda _, __, y: seen.append(y))
    check(net, norms=1)
    handle.remove()
    check(net, norms=0)
    net = Lambda(
        lambda s, x: s.c(s.b(s.a(x.relu()))), norm(), nn.Upsample(scale_factor=2), conv(k=1)
    )
    net.b.register_forward_pre_hook(lambda *_: None)
    check(net, norms=1)


# ------------------------------------------------------------------------------ channels


def shuffled(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def swapped(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, 1)
    return torch.cat([right, left], 1)


ROUTED = {
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "shuffle module": nn.ChannelShuffle(4),
    "shuffle by hand": shuffled,
    "turned around": lambda x: x[:, [3, 2, 1, 0]],
    "some": lambda x: x[:, 1:],
    "shuffle by hand, sizes left open": lambda x: (
        x.reshape(x.shape[0], 2, 2, *x.shape[2:])
        .transpose(1, 2)
        .reshape(x.shape[0], -1, *x.shape[2:])
    ),
    "every other": lambda x: x[:, ::2],
    "rolled": lambda x: x.roll(1, 1),
    "mirrored": lambda x: x.flip(1),
    "by number": lambda x: x.index_select(1, torch.tensor([2, 0, 3])),
    "from the first": lambda x: x.narrow(1, 0, 3),
    "some of others": lambda x: x[:, None, [0, 2]].squeeze(1),
    "in thirds": lambda x: torch.hstack(torch.tensor_split(x, 3, dim=1)[::-1]),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, 3], dim=1)[1],
    "chunks swapped": swapped,
}


def test_a_norm_of_one_channel_passes_what_moves_its_positions() -> None:
    """One channel looks like any axis of size one."""
    xs = image(2, 1, 10, 8), image(3, 1, 6, 12)
    for name in ("and off again", "every other", "a half", "turned", "windows", "rows twice"):
        step = SPREAD[name]
        check(Lambda(lambda s, x, f=step: s.b(f(s.a(x))).relu(), conv(1, 1), norm(1)), *xs, norms=0)
        last = conv(1, 3, k=1)
        check(Lambda(lambda s, x, f=step: s.b(f(s.a(x.relu()))), norm(1), last), *xs, norms=0)


REPEATED = {
    "repeat": lambda x: x.repeat(1, 3, 1, 1),
    "tile": lambda x: torch.tile(x, (3, 1, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
}


@pytest.mark.parametrize("step", ROUTED.values(), ids=ROUTED)
def test_a_norm_passes_what_moves_or_picks_channels_both_ways(step: object) -> None:
    width = step(image()).shape[1]
    check(behind(step, width), *WIDE, norms=0)
    check(before(step, width), *WIDE, norms=0)


def test_a_norm_behind_a_pixel_shuffle_goes_before_it_and_not_the_other_way_round() -> None:
    """Each channel behind is made of four: one scale for it is one for them, never four for it."""
    check(behind(nn.PixelShuffle(2), 2, made=8), *WIDE, norms=0)
    check(behind(lambda x: F.pixel_shuffle(x, 2), 2, made=8), *WIDE, norms=0)
    check(before(nn.PixelShuffle(2), 1), *WIDE, norms=1)


def test_a_norm_before_a_pixel_unshuffle_goes_behind_it_and_not_the_other_way_round() -> None:
    check(before(nn.PixelUnshuffle(2), 16), *WIDE, norms=0)
    check(behind(lambda x: F.pixel_unshuffle(x, 2), 16), *WIDE, norms=1)


@pytest.mark.parametrize("step", REPEATED.values(), ids=REPEATED)
def test_a_norm_before_repeated_channels_goes_behind_them_and_not_the_other_way_round(
    step: object,
) -> None:
    """Each channel behind is one before: a scale for that is one for all of its copies."""
    check(before(step, 12), *WIDE, norms=0)
    check(behind(step, 12), *WIDE, norms=1)


def test_a_norm_passes_repeated_channels_and_rows() -> None:
    check(before(lambda x: x.repeat(1, 3, 2, 1), 12), *WIDE, norms=0)


def test_a_norm_before_flattened_images_goes_into_the_linear_layer() -> None:
    for flat in (lambda x: x.flatten(1), nn.Flatten(), lambda x: x.view(x.size(0), -1)):
        check(before(flat, reader=nn.Linear(4 * 9 * 8, 3)), image(), image(5, 4, 9, 8), norms=0)


def test_a_norm_of_features_that_are_not_channels_stays() -> None:
    net = Lambda(lambda s, x: s.b(s.a(x).flatten(1)), conv(4, 2), nn.BatchNorm1d(2 * 9 * 8))
    check(net, image(), image(3, 4, 9, 8), norms=1)


def test_a_reshape_that_cuts_channels_keeps_its_norm() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        return net.b(net.a(x.relu()).reshape(-1, 4))

    net = Lambda(forward, norm(), nn.Linear(4, 3))
    check(net, image(2, 4, 8, 8), image(2, 4, 8, 4), norms=1)


def test_norms_before_and_behind_rows_of_pixels() -> None:
    def behind_rows(net: nn.Module, x: torch.Tensor) -> object:
        return net.b(net.a(x).permute(0, 2, 3, 1).reshape(-1, 4))

    def before_rows(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x.relu()).permute(0, 2, 3, 1)
        return net.b(x.reshape(-1, x.shape[-1]))

    check(Lambda(behind_rows, conv(), nn.BatchNorm1d(4)), norms=0)
    check(Lambda(before_rows, norm(), nn.Linear(4, 3)), norms=0)


# ------------------------------------------------------------------------------ parts


def test_norms_of_parts_go_into_the_layer_that_makes_all_of_them() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        left, middle, right = net.a(x).split([1, 2, 1], 1)
        return net.b(left).relu(), net.c(middle) * right

    check(Lambda(forward, conv(), norm(1), norm(2)), norms=0)


def test_norms_of_parts_that_overlap_stay() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x)
        return net.b(x[:, :3]).relu(), x[:, 2:].sigmoid()

    check(Lambda(forward, conv(), norm(3)), norms=1)


def test_a_norm_of_a_part_stays_where_the_whole_is_read() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x)
        return net.b(x[:, :3]).relu(), x.sigmoid()

    check(Lambda(forward, conv(), norm(3)), norms=1)


def test_a_part_that_is_changed_in_place_keeps_the_norms_around_it() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        left, right = net.a(x).chunk(2, 1)
        left.relu_()
        return net.b(torch.cat([left, right], 1))

    check(Lambda(forward, conv(), norm()), norms=1)


def test_a_norm_before_parts_goes_into_the_layers_that_read_them() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        left, right = net.a(x.relu()).chunk(2, 1)
        return net.b(left), net.c(right)

    check(Lambda(forward, norm(), conv(2, 3, 1), conv(2, 3, padding=0)), norms=0)
    check(Lambda(forward, norm(), conv(2, 3, 1), conv(2, 3)), norms=1)


def test_norms_before_a_cat_go_into_the_layer_behind_it() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        parts = [net.a(x.relu()), x.tanh(), net.b(x.sigmoid())]
        return net.c(torch.cat(parts, 1))

    check(Lambda(forward, norm(), norm(), conv(12, 3, 1)), norms=0)
    check(Lambda(forward, norm(), norm(), conv(12, 3)), norms=2)


def test_a_norm_before_a_cat_whose_input_then_changes_stays() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = x.sigmoid()
        y = net.a(x)
        x.mul_(2)
        return net.b(torch.cat([y, x], 1))

    check(Lambda(forward, norm(), conv(8, 3, 1)), norms=1)


# ------------------------------------------------------------------------------ sums


@pytest.mark.parametrize(
    "add",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: -2 * a + b / 3,
        lambda a, b: torch.add(a, b, alpha=-0.5),
        lambda a, b: torch.sub(-a, b, alpha=2),
    ],
    ids=range(5),
)
def test_a_norm_behind_a_sum_goes_into_the_layers_of_different_values(add: object) -> None:
    net = Lambda(
        lambda s, x: s.c(add(s.a(x), s.b(x.sigmoid()))).relu(),
        conv(bias=True), conv(k=1), norm(),
    )  # fmt: skip
    check(net, norms=0, convs=2)


def test_a_norm_behind_a_sum_goes_on_to_the_parts_of_a_term() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        parts = torch.cat([net.a(x), net.b(x.sigmoid())], 1)
        return net.d(parts + F.interpolate(net.c(x.tanh()), scale_factor=1)).relu()

    parts = conv(4, 1), conv(4, 3, bias=True), conv(bias=True), norm()
    check(Lambda(forward, *parts), norms=0, convs=3)


def test_a_norm_behind_a_sum_with_what_no_layer_makes_stays() -> None:
    net = Lambda(lambda s, x: s.c(s.a(x) + s.b(x.sigmoid()) + x).relu(), conv(), conv(), norm())
    check(net, norms=1, convs=2)


def test_a_norm_behind_a_sum_stays_where_a_term_is_also_read() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        left = net.a(x)
        return net.c(left + net.b(x.sigmoid())).relu(), left

    check(Lambda(forward, conv(), conv(), norm()), norms=1, convs=2)


# ------------------------------------------------------------------------------ can this fail?


def test_a_perturbed_fold_is_noticed() -> None:
    net = check(behind(SPREAD["bilinear"]), *WIDE, norms=0)
    twin = check(behind(SPREAD["bilinear"]), *WIDE, norms=0)
    twin.a.weight.data[0, 0, 1, 1] += 1e-6
    with pytest.raises(AssertionError):
        assert_same_function(net, twin, WIDE[0], tolerance=1e-12)
