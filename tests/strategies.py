"""Hypothesis strategies: random small networks of the operators that a fold meets.

A network is drawn as Python source, statement by statement. Each statement is run as soon as it is
drawn, at two input sizes, so that only programs that run are produced, and a failing example is
shown as the forward a person would have written.
"""

from __future__ import annotations

import itertools
import linecache
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from zoo import randomise

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Network", "networks"]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_SIZES = {1: (9,), 2: (7, 6), 3: (5, 4, 5)}
_files = itertools.count()


@dataclass(frozen=True, eq=False)
class Network:
    """A drawn model in float64 and eval mode, and the input shapes it runs at."""

    model: nn.Module
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    source: str

    def inputs(self, which: int = 0) -> torch.Tensor:
        """Draw the example input (0) or one of another batch and size (1)."""
        rng = torch.Generator().manual_seed(which)
        return torch.randn(self.shapes[which], generator=rng, dtype=torch.float64)

    def __repr__(self) -> str:
        """Show what a person needs to run the example again."""
        return f"\n{self.source}\n{self.model}\ninput shapes: {self.shapes}"


@st.composite
def networks(draw: st.DrawFn, max_steps: int = 9) -> Network:
    """Draw a network of up to ``max_steps`` statements, some of which are blocks of several."""
    rank = draw(st.sampled_from([2, 1, 3]))
    channels = draw(st.sampled_from([2, 1, 4, 3, 6]))
    fixed = draw(st.booleans())
    shape = (2, channels, *_SIZES[rank])
    other = (
        3,
        channels,
        *(_SIZES[rank] if fixed else (n + 2 + i for i, n in enumerate(_SIZES[rank]))),
    )
    model, source = _draw_module(draw, (shape, other), max_steps, depth=0)
    return Network(model, (shape, other), source)


def _draw_module(
    draw: st.DrawFn, shapes: tuple[tuple[int, ...], ...], max_steps: int, depth: int
) -> tuple[nn.Module, str]:
    author = _Author(draw, shapes, depth)
    for _ in range(draw(st.integers(1, max_steps))):
        author.write_one()
    return author.finish()


class _Block(nn.Module):
    """Base of every generated module; the forward is added from source."""


@dataclass(eq=False)
class _Author:
    """Writes one forward. ``names`` are the values so far; ``runs`` hold them at both sizes."""

    draw: st.DrawFn
    shapes: tuple[tuple[int, ...], ...]
    depth: int
    module: nn.Module = field(init=False)
    lines: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: ["x"])
    runs: list[dict[str, Any]] = field(init=False)
    inner: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = _Block().double().eval()
        shared = {"self": self.module, "torch": torch, "F": F, "k": 2}
        self.runs = [
            {**shared, "x": torch.randn(s, generator=torch.Generator().manual_seed(9)).double()}
            for s in self.shapes
        ]

    # ---------------------------------------------------------------- writing

    def write_one(self) -> None:
        """Append one statement of a drawn kind; a kind that does not fit here writes nothing."""
        write = self.draw(st.sampled_from(_KINDS))
        write(self, self.pick())

    def pick(self) -> str:
        """Choose a value, the newest more often than not, so that little drawn is dead code."""
        newest = self.names[-1]
        return self.draw(st.sampled_from([*[newest] * len(self.names), *self.names[-2::-1]]))

    def value(self, name: str) -> torch.Tensor:
        return self.runs[0][name]

    def assign(self, expression: str) -> str | None:
        """Write ``vN = expression`` if it runs at both sizes; return the new name."""
        name = f"v{len(self.lines)}"
        if not self._runs(f"{name} = {expression}"):
            return None
        if not _usable(*(run[name] for run in self.runs)):
            self._take_back(name)
            return None
        self.names.append(name)
        return name

    def state(self, statement: str) -> None:
        """Write a statement that changes a value in place, if it runs at both sizes."""
        self._runs(statement)

    def _runs(self, statement: str) -> bool:
        """Run a statement at both sizes; first on copies, since a failure may leave traces."""
        copies = [
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in run.items()}
            for run in self.runs
        ]
        code = compile(statement, "<statement>", "exec")
        try:
            with torch.no_grad():
                for run in [*copies, *self.runs]:
                    exec(code, {}, run)  # noqa: S102 (own source)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        self.lines.append(statement)
        return True

    def _take_back(self, name: str) -> None:
        self.lines.pop()
        for run in self.runs:
            run.pop(name)

    # ---------------------------------------------------------------- modules

    def add(self, part: nn.Module) -> str:
        """Register a submodule with random numbers; return the expression that names it."""
        name = f"m{len(self.module._modules)}"
        randomise(part.double(), seed=len(self.module._modules) + 17 * self.depth)
        self.module.add_module(name, part)
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        name = f"p{len(self.module._parameters)}"
        rng = torch.Generator().manual_seed(len(self.module._parameters))
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        values = scale * torch.randn(shape, generator=rng, dtype=torch.float64)
        self.module.register_parameter(name, nn.Parameter(values))
        return f"self.{name}"

    # ---------------------------------------------------------------- the end

    def finish(self) -> tuple[nn.Module, str]:
        """Choose what is returned, build the class, and give it the module's contents."""
        if self.depth == 0:
            extra = self.draw(st.lists(st.sampled_from(self.names), max_size=2, unique=True))
        else:
            extra = []
        result = ", ".join(dict.fromkeys([self.names[-1], *extra]))
        body = "\n        ".join([*self.lines, f"return {result}"])
        title = f"Block{self.depth}"
        source = f"class {title}(_Block):\n    def forward(self, x, k=2):\n        {body}\n"
        # linecache lets tracebacks and torch's source readers see the generated text.
        path = f"<network {next(_files)}>"
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        scope: dict[str, Any] = {"_Block": _Block, "torch": torch, "F": F, "__name__": __name__}
        exec(compile(source, path, "exec"), scope)  # noqa: S102 (own source)
        built: nn.Module = scope[title]()
        # What was made for statements that did not run is left out.
        for kept in (self.module._modules, self.module._parameters):
            for name in [n for n in kept if not re.search(rf"self\.{n}\b", body)]:
                del kept[name]
        built.__dict__.update(self.module.__dict__)
        return built.eval(), "\n".join([*self.inner, source])


def _usable(*values: Any) -> bool:
    return all(
        isinstance(v, torch.Tensor) and v.numel() > 0 and bool(v.abs().max() < 1e6) for v in values
    )


# -------------------------------------------------------------------- kinds of statements
# Each takes the author and the name of a value. The first kinds are the plainest: shrinking
# prefers them.


def _rank(a: _Author, v: str) -> int:
    return a.value(v).ndim - 2


def _is_map(a: _Author, v: str) -> bool:
    """Whether the value is ``(batch, channels, *spatial)``."""
    return 1 <= _rank(a, v) <= 3


def _draw_conv(a: _Author, v: str) -> nn.Module:
    draw, rank, cin = a.draw, _rank(a, v), a.value(v).shape[1]
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
    return _CONV[rank](
        cin, cout, kernel, stride, padding, dilation, groups, bias=bias, padding_mode=mode
    )


def _draw_norm(a: _Author, channels: int, rank: int) -> nn.Module:
    return _NORM[rank](channels, affine=a.draw(st.sampled_from([True, True, False])))


def _conv(a: _Author, v: str) -> None:
    if _is_map(a, v):
        a.assign(f"{a.add(_draw_conv(a, v))}({v})")


def _norm(a: _Author, v: str) -> None:
    if _is_map(a, v):
        a.assign(f"{a.add(_draw_norm(a, a.value(v).shape[1], _rank(a, v)))}({v})")


def _conv_norm(a: _Author, v: str) -> None:
    if _is_map(a, v):
        conv = _draw_conv(a, v)
        norm = _draw_norm(a, conv.out_channels, _rank(a, v))
        parts: list[nn.Module] = [conv, norm]
        if a.draw(st.booleans()):
            parts = [nn.Sequential(conv), nn.Identity(), nn.Dropout(0.3), norm]
        a.assign(f"{a.add(nn.Sequential(*parts))}({v})")


def _parallel(a: _Author, v: str) -> None:
    """Branches of one stride and width that line up, as a re-parameterised block has them."""
    if not _is_map(a, v):
        return
    draw, rank, cin = a.draw, _rank(a, v), a.value(v).shape[1]
    groups = draw(st.sampled_from([1, cin]))
    cout = draw(st.sampled_from([cin, 2 * groups]))
    stride, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
    sizes = draw(st.lists(st.sampled_from([3, 1, 5]), min_size=1, max_size=3))
    names = []
    for size in sizes:
        dilation = draw(st.sampled_from([1, 1, 2])) if size == 3 else 1
        pad = dilation * (size - 1) // 2
        conv = _CONV[rank](cin, cout, size, stride, pad, dilation, groups, bias=bias)
        normed = draw(st.booleans())
        branch = nn.Sequential(conv, _draw_norm(a, cout, rank)) if normed else conv
        names.append(a.assign(f"{a.add(branch)}({v})"))
    if draw(st.booleans()):
        names.append(a.assign(f"{a.add(_draw_norm(a, cin, rank))}({v})"))
    names.append(v if draw(st.booleans()) else None)
    terms = [name for name in names if name]
    sign = draw(st.sampled_from([" + ", " - "]))
    if terms:
        a.assign(sign.join(terms))


def _chain(a: _Author, v: str) -> None:
    """Two convolutions in a row over a wide middle, so that one is cheaper where it is exact.

    Whether it is depends on the bias of the first and the padding and kernel of the second.
    """
    if not _is_map(a, v):
        return
    draw, rank, width = a.draw, _rank(a, v), a.value(v).shape[1]
    for size, cin, cout in zip(
        draw(st.sampled_from([(1, 3), (3, 1), (1, 1), (2, 3)])),
        (width, 3 * width),
        (3 * width, width),
        strict=True,
    ):
        stride, pad = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([size // 2, 0, 1]))
        conv = _CONV[rank](cin, cout, size, stride, pad, bias=draw(st.booleans()))
        normed = draw(st.booleans())
        part = nn.Sequential(conv, _draw_norm(a, cout, rank)) if normed else conv
        v = a.assign(f"{a.add(part)}({v})") or ""
        if not v:
            return


def _add(a: _Author, v: str) -> None:
    like = [n for n in a.names if a.value(n).shape == a.value(v).shape]
    other = a.draw(st.sampled_from(like))
    form = a.draw(
        st.sampled_from(
            ["{} + {}", "{} - {}", "torch.add({}, {}, alpha=2)", "torch.sub({}, {})", "{} * {}"]
        )
    )
    a.assign(form.format(v, other))


def _scalar(a: _Author, v: str) -> None:
    form = a.draw(
        st.sampled_from(
            ["2 * {}", "{} + 0.5", "{} / 3", "1 - {}", "-{}", "{} * 0", "torch.mul({}, -1.5)"]
        )
    )
    a.assign(form.format(v))


def _shape_scalar(a: _Author, v: str) -> None:
    """Compute with numbers that a trace may or may not know: a size, an argument."""
    form = ["{0} / {0}.shape[-1]", "{0} * (k + 1)", "{0} + k * k"]
    a.assign(a.draw(st.sampled_from(form)).format(v))


def _per_channel(a: _Author, v: str) -> None:
    """A learned factor or shift per channel, or along the last axis, which may not be channels."""
    rank, width = _rank(a, v), a.value(v).shape
    shapes: list[tuple[int, ...]] = [(width[-1],), ()]
    if _is_map(a, v):
        shapes = [(width[1], *(1,) * rank), (1, width[1], *(1,) * rank), *shapes]
    name = a.parameter(*a.draw(st.sampled_from(shapes)))
    a.assign(
        a.draw(st.sampled_from(["{0} * {1}", "{1} * {0}", "{0} + {1}", "{0} - {1}"])).format(
            v, name
        )
    )


def _activation(a: _Author, v: str) -> None:
    a.assign(a.draw(st.sampled_from(["torch.relu({})", "F.silu({})", "{}.relu()"])).format(v))


def _harmless(a: _Author, v: str) -> None:
    part = a.draw(st.sampled_from([nn.Identity(), nn.Dropout(0.5), None]))
    if part is None:
        form = a.draw(
            st.sampled_from(["F.dropout({}, 0.4, self.training)", "{}.contiguous()", "{}.clone()"])
        )
        a.assign(form.format(v))
    else:
        a.assign(f"{a.add(part)}({v})")


def _average(a: _Author, v: str) -> None:
    if not _is_map(a, v):
        return
    size = a.draw(st.sampled_from([3, 2, 1]))
    pool = _AVERAGE[_rank(a, v)](
        size,
        a.draw(st.sampled_from([1, 2])),
        a.draw(st.sampled_from([size // 2, 0])),
        ceil_mode=a.draw(st.booleans()),
        count_include_pad=a.draw(st.booleans()),
    )
    a.assign(f"{a.add(pool)}({v})")


def _pad(a: _Author, v: str) -> None:
    """Pad by hand, by unequal amounts; negative ones crop."""
    if _is_map(a, v):
        pads = [a.draw(st.sampled_from([1, 0, 2, -1])) for _ in range(2 * _rank(a, v))]
        value = a.draw(st.sampled_from(["", ", value=0.5"]))
        a.assign(f"F.pad({v}, {tuple(pads)}{value})")


def _split(a: _Author, v: str) -> None:
    if not _is_map(a, v) or a.value(v).shape[1] < 2:
        return
    half = (a.value(v).shape[1] + 1) // 2
    form = a.draw(
        st.sampled_from(["{0}.chunk(2, 1)[{1}]", "torch.split({0}, {2}, 1)[{1}]", "{0}[:, {1}:]"])
    )
    a.assign(form.format(v, a.draw(st.sampled_from([0, 1])), half))


def _spread(a: _Author, v: str) -> None:
    """Move, repeat or pool positions, as a scale per channel may pass, or almost."""
    if not _is_map(a, v):
        return
    rank = _rank(a, v)
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    pads = tuple(a.draw(st.sampled_from([1, 0])) for _ in range(2 * rank))
    forms = [
        "F.interpolate({0}, scale_factor=2)",
        f"F.interpolate({{0}}, scale_factor=2, mode={linear!r})",
        f"F.interpolate({{0}}, scale_factor=1.5, mode={linear!r}, align_corners=True)",
        f"F.pad({{0}}, {pads}, mode='reflect')",
        f"F.pad({{0}}, {pads}, mode='replicate')",
        f"F.max_pool{rank}d({{0}}, 3, 2, 1)",
        f"F.max_pool{rank}d({{0}}, 2, 1, ceil_mode=True)",
        f"F.adaptive_avg_pool{rank}d({{0}}, 2)",
        f"F.avg_pool{rank}d({{0}}, 2, ceil_mode=True)",
        f"F.avg_pool{rank}d({{0}}, 3, 2, 1, count_include_pad=False)",
        "{0}.roll(1, -1)",
        "{0}.flip(1)",
        "{0}.amax(-1, keepdim=True)",
        "{0}.unsqueeze(-1).mean(-1)",
        "{0}.flatten(2).reshape({0}.shape)",
    ]
    if a.value(v).numel() <= 4000:
        a.assign(a.draw(st.sampled_from(forms)).format(v))


def _normed(a: _Author, v: str) -> str:
    """Put a norm behind a value, most of the time."""
    if a.draw(st.sampled_from([True, True, False])):
        return a.assign(f"{a.add(_draw_norm(a, a.value(v).shape[1], _rank(a, v)))}({v})") or v
    return v


def _between_norms(a: _Author, v: str) -> None:
    """A convolution, what a scale may pass, a norm; or the other way round."""
    if not _is_map(a, v):
        return
    conv, width = _draw_conv(a, v), a.value(v).shape[1]
    backward = a.draw(st.booleans())
    v = (a.assign(f"{a.add(conv)}({v})") or v) if backward else _normed(a, v)
    for _ in range(a.draw(st.sampled_from([1, 2]))):
        a.draw(st.sampled_from([_spread, _route]))(a, v)
        v = a.names[-1]
        if not _is_map(a, v):
            return
    if backward:
        _normed(a, v)
    else:
        width, rank = a.value(v).shape[1], _rank(a, v)
        a.assign(f"{a.add(_CONV[rank](width, 3, a.draw(st.sampled_from([1, 2]))))}({v})")


def _route(a: _Author, v: str) -> None:
    """Move or pick channels."""
    if not _is_map(a, v):
        return
    width, sizes = a.value(v).shape[1], list(range(2, a.value(v).ndim))
    forms = ["{0}[:, [-1, *range({1} - 1)]]", "{0}[:, ::2]"]
    if width % 2 == 0:
        rest = ", ".join(f"{{0}}.shape[{d}]" for d in sizes)
        by_hand = f"{{0}}.view({{0}}.shape[0], 2, {{1}} // 2, {rest}).transpose(1, 2)"
        forms += ["F.channel_shuffle({0}, 2)", f"{by_hand}.reshape({{0}}.shape[0], {{1}}, {rest})"]
        forms += ["torch.cat([{0}.chunk(2, 1)[1], {0}.chunk(2, 1)[0]], 1)"]
    if width % 4 == 0 and len(sizes) == 2:
        forms += ["F.pixel_shuffle({0}, 2)"]
    if width <= 2 and len(sizes) == 2:
        forms += ["F.pixel_unshuffle({0}, 2)"]
    a.assign(a.draw(st.sampled_from(forms)).format(v, width))


def _parts(a: _Author, v: str) -> None:
    """Take channels apart, with norms of some parts, and put them together again."""
    if not _is_map(a, v) or a.value(v).shape[1] < 2:
        return
    v = a.assign(f"{a.add(_draw_conv(a, v))}({v})") or v
    width, draw = a.value(v).shape[1], a.draw
    first = draw(st.integers(1, max(1, width - 1)))
    if width < 2 or not a.assign(f"{v} * 1"):
        return
    a.names.pop()
    left, right = f"v{len(a.lines)}", f"v{len(a.lines)}b"
    a.state(f"{left}, {right} = {v}.split([{first}, {width - first}], 1)")
    if left not in a.runs[0]:
        return
    names = []
    for name in (left, right):
        kept = name
        if draw(st.booleans()):
            norm = a.add(_draw_norm(a, a.value(name).shape[1], _rank(a, name)))
            kept = a.assign(f"{norm}({name})") or name
        if draw(st.sampled_from([False, False, True])):
            kept = a.assign(f"torch.tanh({kept})") or kept
        names.append(kept)
    a.names += [n for n in (left, right) if n not in a.names]
    joined = a.assign(f"torch.cat([{', '.join(names)}], 1)")
    if joined and draw(st.booleans()):
        a.assign(f"{a.add(_CONV[_rank(a, joined)](width, 2, 1))}({joined})")


def _sum_of_two(a: _Author, v: str) -> None:
    """A norm of a sum of layers that read different values, or one of them twice."""
    like = [n for n in a.names if a.value(n).shape == a.value(v).shape]
    if not _is_map(a, v):
        return
    other = a.draw(st.sampled_from(like))
    rank, width = _rank(a, v), a.value(v).shape[1]
    left = a.assign(f"{a.add(_CONV[rank](width, 3, 3, padding=1))}({v})")
    right = a.assign(f"{a.add(_CONV[rank](width, 3, 1, bias=False))}(torch.tanh({other}))")
    if left and right:
        form = a.draw(st.sampled_from(["{} + {}", "{} - 2 * {}", "{} / 3 + {}"]))
        total = a.assign(form.format(left, right))
        if total:
            a.assign(f"{a.add(_draw_norm(a, 3, rank))}({total})")


def _features(a: _Author, v: str) -> None:
    """Flatten whole images before a linear layer, where their size is always one."""
    if _is_map(a, v) and a.value(v)[0].numel() <= 600:
        v = _normed(a, v)
        form = a.draw(st.sampled_from(["{0}.flatten(1)", "{0}.view({0}.size(0), -1)"]))
        flat = a.assign(form.format(v))
        if flat:
            a.assign(f"{a.add(nn.Linear(a.value(flat).shape[1], 3))}({flat})")


def _cat(a: _Author, v: str) -> None:
    if _is_map(a, v):
        others = [
            n for n in a.names if a.value(n).shape[2:] == a.value(v).shape[2:] and _is_map(a, n)
        ]
        other = a.draw(st.sampled_from(others))
        if a.value(v).shape[1] + a.value(other).shape[1] <= 8:
            a.assign(f"torch.cat([{v}, {other}], dim=1)")


def _in_place(a: _Author, v: str) -> None:
    """Change a value that others may read before, after, or through a view."""
    like = [n for n in a.names if a.value(n).shape == a.value(v).shape and n != v]
    forms = ["{0}.relu_()", "{0}.mul_(0.5)", "{0} += 1", "F.relu({0}, inplace=True)"]
    if like:
        other = a.draw(st.sampled_from(like))
        forms += [f"{{0}}.add_({other})", f"{{0}} += {other}"]
    a.state(a.draw(st.sampled_from(forms)).format(v))


def _in_place_module(a: _Author, v: str) -> None:
    a.assign(f"{a.add(nn.ReLU(inplace=True))}({v})")


def _again(a: _Author, v: str) -> None:
    """Call a module that has been called before."""
    parts = list(a.module._modules)
    if parts:
        a.assign(f"self.{a.draw(st.sampled_from(parts))}({v})")


def _tied(a: _Author, v: str) -> None:
    """Give a new convolution the very parameter of an older one."""
    convs = [m for m in a.module.modules() if isinstance(m, tuple(_CONV.values()))]
    if not convs or not _is_map(a, v):
        return
    old = a.draw(st.sampled_from(convs))
    cin = old.in_channels
    new = type(old)(cin, old.out_channels, old.kernel_size, padding="same", groups=old.groups)
    name = a.add(new)
    new.weight = old.weight
    a.assign(f"{name}({v})")


def _functional(a: _Author, v: str) -> None:
    if not _is_map(a, v):
        return
    rank, cin = _rank(a, v), a.value(v).shape[1]
    cout = a.draw(st.sampled_from([2, 3]))
    weight = a.parameter(cout, cin, *(3,) * rank)
    if a.draw(st.booleans()):
        weight = f"({weight} - {weight}.mean())"
    out = a.assign(f"F.conv{rank}d({v}, {weight}, padding=1)")
    if out and a.draw(st.booleans()):
        holder = a.add(_draw_norm(a, cout, rank))
        stats = f"{holder}.running_mean, {holder}.running_var, {holder}.weight, {holder}.bias"
        a.assign(f"F.batch_norm({out}, {stats}, self.training, 0.1, {holder}.eps)")


def _channels_last(a: _Author, v: str) -> None:
    """Go to channels last and back, with a linear layer or a factor on the way."""
    if not _is_map(a, v):
        return
    rank, width = _rank(a, v), a.value(v).shape[1]
    there, back = [0, *range(2, rank + 2), 1], [0, rank + 1, *range(1, rank + 1)]
    now = a.assign(f"{v}.permute({there})")
    if now and a.draw(st.booleans()):
        now = a.assign(f"{a.add(nn.Linear(width, width))}({now})") or now
    if now and a.draw(st.booleans()):
        now = a.assign(f"{a.parameter(width)} * {now}") or now
    if now:
        a.assign(f"{now}.permute({back})")


def _tokens(a: _Author, v: str) -> None:
    """Flatten to ``(batch, tokens, channels)``, then a linear layer, sometimes with its BN."""
    if not _is_map(a, v):
        return
    if a.draw(st.booleans()):
        v = a.assign(f"{a.add(_draw_norm(a, a.value(v).shape[1], _rank(a, v)))}({v})") or v
    forms = ["{0}.flatten(2)", "{0}.reshape({0}.size(0), {0}.shape[1], -1)"]
    form = a.draw(st.sampled_from(forms))
    now = a.assign(f"{form.format(v)}.transpose(1, 2)")
    if now is None:
        return
    out = a.assign(f"{a.add(nn.Linear(a.value(now).shape[2], 3))}({now})")
    if out and a.draw(st.booleans()):
        a.assign(f"{a.add(nn.BatchNorm1d(3))}({out}.flatten(0, 1)).reshape_as({out})")


def _head(a: _Author, v: str) -> None:
    """Pool to a vector, then linear and BN, in either order."""
    if not _is_map(a, v):
        return
    rank = _rank(a, v)
    if a.draw(st.booleans()):
        v = a.assign(f"{a.add(_draw_norm(a, a.value(v).shape[1], rank))}({v})") or v
    forms = [
        f"{v}.mean({list(range(2, rank + 2))})",
        f"F.adaptive_avg_pool{rank}d({v}, 1).flatten(1)",
    ]
    pooled = a.assign(a.draw(st.sampled_from(forms)))
    if pooled:
        width = a.value(pooled).shape[1]
        parts: list[nn.Module] = [nn.Linear(width, width), nn.BatchNorm1d(width)]
        if a.draw(st.booleans()):
            parts.reverse()
        a.assign(f"{a.add(nn.Sequential(*parts))}({pooled})")


def _nested(a: _Author, v: str) -> None:
    """Call a module whose forward is drawn in the same way."""
    if a.depth == 0 and _is_map(a, v):
        shapes = tuple(tuple(run[v].shape) for run in a.runs)
        part, source = _draw_module(a.draw, shapes, 4, depth=1)
        name = f"m{len(a.module._modules)}"
        a.module.add_module(name, part)
        a.inner.append(f"# self.{name}\n{source}")
        a.assign(f"self.{name}({v}{a.draw(st.sampled_from(['', ', 2', ', k=2']))})")


# Structures that fold, or seem to, are drawn more often than what stands between them.
_KINDS: list[Callable[[_Author, str], None]] = [
    _conv,
    _norm,
    *[_conv_norm] * 2,
    *[_parallel] * 5,
    *[_chain] * 5,
    _add,
    _scalar,
    _per_channel,
    _activation,
    _harmless,
    _average,
    _pad,
    _split,
    _cat,
    _spread,
    _route,
    *[_between_norms] * 4,
    *[_parts] * 2,
    *[_sum_of_two] * 2,
    _features,
    *[_in_place] * 2,
    _in_place_module,
    *[_again] * 2,
    _tied,
    _functional,
    _channels_last,
    _tokens,
    _head,
    *[_nested] * 2,
    _shape_scalar,
]
