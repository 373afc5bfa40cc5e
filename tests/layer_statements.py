"""Statements of a drawn forward that are layers, branches or chains of them, scales, pools."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import nn

from authors import Author

__all__ = [
    "CONV",
    "draw_conv",
    "draw_norm",
    "is_map",
    "rank_of",
    "write_activation",
    "write_add",
    "write_average",
    "write_chain",
    "write_conv",
    "write_conv_norm",
    "write_harmless",
    "write_norm",
    "write_pad",
    "write_parallel",
    "write_per_channel",
    "write_scalar",
    "write_shape_scalar",
]

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def rank_of(a: Author, v: str) -> int:
    return a.value(v).ndim - 2


def is_map(a: Author, v: str) -> bool:
    """Whether the value is ``(batch, channels, *spatial)``."""
    return 1 <= rank_of(a, v) <= 3


def draw_conv(a: Author, v: str) -> nn.Module:
    draw, rank, cin = a.draw, rank_of(a, v), a.value(v).shape[1]
    kernel = tuple(draw(st.sampled_from([3, 1, 2])) for _ in range(rank))
    dilation = draw(st.sampled_from([1, 1, 2]))
    groups = draw(st.sampled_from([1, *(g for g in range(cin, 1, -1) if cin % g == 0)]))
    cout = draw(st.sampled_from([cin, groups, 2 * groups]))
    stride: int | tuple[int, ...] = draw(st.sampled_from([1, 1, 2]))
    padding: Any = tuple(dilation * (k - 1) // 2 for k in kernel)
    mode = "zeros"
    style = draw(st.sampled_from(["aligned", "none", "one", "same", "reflect"]))
    if style == "same":
        padding, stride = "same", 1
    elif style != "aligned":
        padding = {"none": 0, "one": 1, "reflect": 1}[style]
        mode = "reflect" if style == "reflect" else "zeros"
    bias = draw(st.booleans())
    return CONV[rank](
        cin, cout, kernel, stride, padding, dilation, groups, bias=bias, padding_mode=mode
    )


def draw_norm(a: Author, channels: int, rank: int) -> nn.Module:
    return NORM[rank](channels, affine=a.draw(st.sampled_from([True, True, False])))


def write_conv(a: Author, v: str) -> None:
    if is_map(a, v):
        a.assign(f"{a.add(draw_conv(a, v))}({v})")


def write_norm(a: Author, v: str) -> None:
    if is_map(a, v):
        a.assign(f"{a.add(draw_norm(a, a.value(v).shape[1], rank_of(a, v)))}({v})")


def write_conv_norm(a: Author, v: str) -> None:
    if is_map(a, v):
        conv = draw_conv(a, v)
        norm = draw_norm(a, conv.out_channels, rank_of(a, v))
        parts: list[nn.Module] = [conv, norm]
        if a.draw(st.booleans()):
            parts = [nn.Sequential(conv), nn.Identity(), nn.Dropout(0.3), norm]
        a.assign(f"{a.add(nn.Sequential(*parts))}({v})")


def write_parallel(a: Author, v: str) -> None:
    """Branches of one stride and width that line up, as a re-parameterised block has them."""
    if not is_map(a, v):
        return
    draw, rank, cin = a.draw, rank_of(a, v), a.value(v).shape[1]
    groups = draw(st.sampled_from([1, cin]))
    cout = draw(st.sampled_from([cin, 2 * groups]))
    stride, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
    sizes = draw(st.lists(st.sampled_from([3, 1, 5]), min_size=1, max_size=3))
    names = []
    for size in sizes:
        dilation = draw(st.sampled_from([1, 1, 2])) if size == 3 else 1
        pad = dilation * (size - 1) // 2
        conv = CONV[rank](cin, cout, size, stride, pad, dilation, groups, bias=bias)
        normed = draw(st.booleans())
        branch = nn.Sequential(conv, draw_norm(a, cout, rank)) if normed else conv
        names.append(a.assign(f"{a.add(branch)}({v})"))
    if draw(st.booleans()):
        names.append(a.assign(f"{a.add(draw_norm(a, cin, rank))}({v})"))
    names.append(v if draw(st.booleans()) else None)
    terms = [name for name in names if name]
    sign = draw(st.sampled_from([" + ", " - "]))
    if terms:
        a.assign(sign.join(terms))


def write_chain(a: Author, v: str) -> None:
    """Two convolutions in a row over a wide middle, so that one is cheaper where it is exact.

    Whether it is depends on the bias of the first and the padding and kernel of the second.
    """
    if not is_map(a, v):
        return
    draw, rank, width = a.draw, rank_of(a, v), a.value(v).shape[1]
    for size, cin, cout in zip(
        draw(st.sampled_from([(1, 3), (3, 1), (1, 1), (2, 3)])),
        (width, 3 * width),
        (3 * width, width),
        strict=True,
    ):
        stride, pad = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([size // 2, 0, 1]))
        conv = CONV[rank](cin, cout, size, stride, pad, bias=draw(st.booleans()))
        normed = draw(st.booleans())
        part = nn.Sequential(conv, draw_norm(a, cout, rank)) if normed else conv
        v = a.assign(f"{a.add(part)}({v})") or ""
        if not v:
            return


def write_add(a: Author, v: str) -> None:
    like = [n for n in a.names if a.value(n).shape == a.value(v).shape]
    other = a.draw(st.sampled_from(like))
    form = a.draw(
        st.sampled_from(
            ["{} + {}", "{} - {}", "torch.add({}, {}, alpha=2)", "torch.sub({}, {})", "{} * {}"]
        )
    )
    a.assign(form.format(v, other))


def write_scalar(a: Author, v: str) -> None:
    form = a.draw(
        st.sampled_from(
            ["2 * {}", "{} + 0.5", "{} / 3", "1 - {}", "-{}", "{} * 0", "torch.mul({}, -1.5)"]
        )
    )
    a.assign(form.format(v))


def write_shape_scalar(a: Author, v: str) -> None:
    """Compute with numbers that a trace may or may not know: a size, an argument."""
    form = ["{0} / {0}.shape[-1]", "{0} * (k + 1)", "{0} + k * k"]
    a.assign(a.draw(st.sampled_from(form)).format(v))


def write_per_channel(a: Author, v: str) -> None:
    """A learned factor or shift per channel, or along the last axis, which may not be channels."""
    rank, width = rank_of(a, v), a.value(v).shape
    shapes: list[tuple[int, ...]] = [(width[-1],), ()]
    if is_map(a, v):
        shapes = [(width[1], *(1,) * rank), (1, width[1], *(1,) * rank), *shapes]
    name = a.parameter(*a.draw(st.sampled_from(shapes)))
    a.assign(
        a.draw(st.sampled_from(["{0} * {1}", "{1} * {0}", "{0} + {1}", "{0} - {1}"])).format(
            v, name
        )
    )


def write_activation(a: Author, v: str) -> None:
    a.assign(a.draw(st.sampled_from(["torch.relu({})", "F.silu({})", "{}.relu()"])).format(v))


def write_harmless(a: Author, v: str) -> None:
    part = a.draw(st.sampled_from([nn.Identity(), nn.Dropout(0.5), None]))
    if part is None:
        form = a.draw(
            st.sampled_from(["F.dropout({}, 0.4, self.training)", "{}.contiguous()", "{}.clone()"])
        )
        a.assign(form.format(v))
    else:
        a.assign(f"{a.add(part)}({v})")


def write_average(a: Author, v: str) -> None:
    if not is_map(a, v):
        return
    size = a.draw(st.sampled_from([3, 2, 1]))
    pool = AVERAGE[rank_of(a, v)](
        size,
        a.draw(st.sampled_from([1, 2])),
        a.draw(st.sampled_from([size // 2, 0])),
        ceil_mode=a.draw(st.booleans()),
        count_include_pad=a.draw(st.booleans()),
    )
    a.assign(f"{a.add(pool)}({v})")


def write_pad(a: Author, v: str) -> None:
    """Pad by hand, by unequal amounts; negative ones crop."""
    if is_map(a, v):
        pads = [a.draw(st.sampled_from([1, 0, 2, -1])) for _ in range(2 * rank_of(a, v))]
        value = a.draw(st.sampled_from(["", ", value=0.5"]))
        a.assign(f"F.pad({v}, {tuple(pads)}{value})")
