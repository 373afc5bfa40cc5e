"""All statements of a drawn forward, and how often each is drawn."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from authors import Author, Statement, draw_module
from layer_statements import (
    CONV,
    draw_conv,
    draw_norm,
    is_map,
    rank_of,
    write_activation,
    write_add,
    write_average,
    write_chain,
    write_conv,
    write_conv_norm,
    write_harmless,
    write_norm,
    write_pad,
    write_parallel,
    write_per_channel,
    write_scalar,
    write_shape_scalar,
)
from norm_statements import (
    normed,
    write_norm_on_a_term,
    write_norms_alone,
    write_something_between,
    write_spelt,
    write_transposed,
)

__all__ = ["KINDS"]


def _split(a: Author, v: str) -> None:
    if not is_map(a, v) or a.value(v).shape[1] < 2:
        return
    half = (a.value(v).shape[1] + 1) // 2
    form = a.draw(
        st.sampled_from(["{0}.chunk(2, 1)[{1}]", "torch.split({0}, {2}, 1)[{1}]", "{0}[:, {1}:]"])
    )
    a.assign(form.format(v, a.draw(st.sampled_from([0, 1])), half))


def _spread(a: Author, v: str) -> None:
    """Move, repeat or pool positions, as a scale per channel may pass, or almost."""
    if not is_map(a, v):
        return
    rank = rank_of(a, v)
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
        "{0}[..., ::2]",
        "{0}[:, :, None].squeeze(2).narrow(-1, 0, 2)",
        "{0}.repeat_interleave(2, dim=-1)",
        "{0}.movedim(1, -1).swapaxes(1, -1)",
        "{0}.tensor_split(2, -1)[0]",
        "{0}.mean(axis=2, keepdims=True)",
    ]
    if a.value(v).numel() <= 4000:
        a.assign(a.draw(st.sampled_from(forms)).format(v))


def _between_norms(a: Author, v: str) -> None:
    """A convolution, what a scale may pass, a norm; or the other way round."""
    if not is_map(a, v):
        return
    conv, width = draw_conv(a, v), a.value(v).shape[1]
    backward = a.draw(st.booleans())
    v = (a.assign(f"{a.add(conv)}({v})") or v) if backward else normed(a, v)
    for _ in range(a.draw(st.sampled_from([1, 2]))):
        a.draw(st.sampled_from([_spread, _route]))(a, v)
        v = a.names[-1]
        if not is_map(a, v):
            return
    if backward:
        normed(a, v)
    else:
        width, rank = a.value(v).shape[1], rank_of(a, v)
        a.assign(f"{a.add(CONV[rank](width, 3, a.draw(st.sampled_from([1, 2]))))}({v})")


def _route(a: Author, v: str) -> None:
    """Move or pick channels."""
    if not is_map(a, v):
        return
    width, sizes = a.value(v).shape[1], list(range(2, a.value(v).ndim))
    forms = ["{0}[:, [-1, *range({1} - 1)]]", "{0}[:, ::2]", "{0}.roll(1, 1)", "{0}.flip(1, 2)"]
    forms += ["torch.hstack({0}.tensor_split(2, 1)[::-1])", "{0}.repeat_interleave(2, 1)"]
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


def _parts(a: Author, v: str) -> None:
    """Take channels apart, with norms of some parts, and put them together again."""
    if not is_map(a, v) or a.value(v).shape[1] < 2:
        return
    v = a.assign(f"{a.add(draw_conv(a, v))}({v})") or v
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
            norm = a.add(draw_norm(a, a.value(name).shape[1], rank_of(a, name)))
            kept = a.assign(f"{norm}({name})") or name
        if draw(st.sampled_from([False, False, True])):
            kept = a.assign(f"torch.tanh({kept})") or kept
        names.append(kept)
    a.names += [n for n in (left, right) if n not in a.names]
    joined = a.assign(f"torch.cat([{', '.join(names)}], 1)")
    if joined and draw(st.booleans()):
        a.assign(f"{a.add(CONV[rank_of(a, joined)](width, 2, 1))}({joined})")


def _sum_of_two(a: Author, v: str) -> None:
    """A norm of a sum of layers that read different values, or one of them twice."""
    like = [n for n in a.names if a.value(n).shape == a.value(v).shape]
    if not is_map(a, v):
        return
    other = a.draw(st.sampled_from(like))
    rank, width = rank_of(a, v), a.value(v).shape[1]
    left = a.assign(f"{a.add(CONV[rank](width, 3, 3, padding=1))}({v})")
    right = a.assign(f"{a.add(CONV[rank](width, 3, 1, bias=False))}(torch.tanh({other}))")
    if left and right:
        form = a.draw(st.sampled_from(["{} + {}", "{} - 2 * {}", "{} / 3 + {}"]))
        total = a.assign(form.format(left, right))
        if total:
            a.assign(f"{a.add(draw_norm(a, 3, rank))}({total})")


def _features(a: Author, v: str) -> None:
    """Flatten whole images before a linear layer, where their size is always one."""
    if is_map(a, v) and a.value(v)[0].numel() <= 600:
        v = normed(a, v)
        form = a.draw(st.sampled_from(["{0}.flatten(1)", "{0}.view({0}.size(0), -1)"]))
        flat = a.assign(form.format(v))
        if flat:
            a.assign(f"{a.add(nn.Linear(a.value(flat).shape[1], 3))}({flat})")


def _cat(a: Author, v: str) -> None:
    if is_map(a, v):
        others = [
            n for n in a.names if a.value(n).shape[2:] == a.value(v).shape[2:] and is_map(a, n)
        ]
        other = a.draw(st.sampled_from(others))
        if a.value(v).shape[1] + a.value(other).shape[1] <= 8:
            a.assign(f"torch.cat([{v}, {other}], dim=1)")


def _in_place(a: Author, v: str) -> None:
    """Change a value that others may read before, after, or through a view."""
    like = [n for n in a.names if a.value(n).shape == a.value(v).shape and n != v]
    forms = ["{0}.relu_()", "{0}.mul_(0.5)", "{0} += 1", "F.relu({0}, inplace=True)"]
    if like:
        other = a.draw(st.sampled_from(like))
        forms += [f"{{0}}.add_({other})", f"{{0}} += {other}"]
    a.state(a.draw(st.sampled_from(forms)).format(v))


def _in_place_module(a: Author, v: str) -> None:
    a.assign(f"{a.add(nn.ReLU(inplace=True))}({v})")


def _again(a: Author, v: str) -> None:
    """Call a module that has been called before."""
    parts = list(a.module._modules)
    if parts:
        a.assign(f"self.{a.draw(st.sampled_from(parts))}({v})")


def _chain_again(a: Author, v: str) -> None:
    """Call a convolution and its norm one behind the other for several values."""
    if is_map(a, v):
        conv = draw_conv(a, v)
        names = a.add(conv), a.add(draw_norm(a, conv.out_channels, rank_of(a, v)))
        for form in a.draw(st.sampled_from([("{}", "{}.tanh()"), ("{}.flip(-1)", "{} * 2")])):
            out = a.assign(f"{names[0]}({form.format(v)})")
            if out and a.draw(st.sampled_from([True, True, True, False])):
                a.assign(f"{names[1]}({out})")


def _tied(a: Author, v: str) -> None:
    """Give a new convolution the very parameter of an older one."""
    convs = [m for m in a.module.modules() if isinstance(m, tuple(CONV.values()))]
    if not convs or not is_map(a, v):
        return
    old = a.draw(st.sampled_from(convs))
    cin = old.in_channels
    new = type(old)(cin, old.out_channels, old.kernel_size, padding="same", groups=old.groups)
    name = a.add(new)
    new.weight = old.weight
    a.assign(f"{name}({v})")


def _functional(a: Author, v: str) -> None:
    if not is_map(a, v):
        return
    rank, cin = rank_of(a, v), a.value(v).shape[1]
    cout = a.draw(st.sampled_from([2, 3]))
    weight = a.parameter(cout, cin, *(3,) * rank)
    if a.draw(st.booleans()):
        weight = f"({weight} - {weight}.mean())"
    out = a.assign(f"F.conv{rank}d({v}, {weight}, padding=1)")
    if out and a.draw(st.booleans()):
        holder = a.add(draw_norm(a, cout, rank))
        stats = f"{holder}.running_mean, {holder}.running_var, {holder}.weight, {holder}.bias"
        a.assign(f"F.batch_norm({out}, {stats}, self.training, 0.1, {holder}.eps)")


def _channels_last(a: Author, v: str) -> None:
    """Go to channels last and back, with a linear layer or a factor on the way."""
    if not is_map(a, v):
        return
    rank, width = rank_of(a, v), a.value(v).shape[1]
    there, back = [0, *range(2, rank + 2), 1], [0, rank + 1, *range(1, rank + 1)]
    now = a.assign(f"{v}.permute({there})")
    if now and a.draw(st.booleans()):
        now = a.assign(f"{a.add(nn.Linear(width, width))}({now})") or now
    if now and a.draw(st.booleans()):
        now = a.assign(f"{a.parameter(width)} * {now}") or now
    if now:
        a.assign(f"{now}.permute({back})")


def _tokens(a: Author, v: str) -> None:
    """Flatten to ``(batch, tokens, channels)``, then a linear layer, sometimes with its BN."""
    if not is_map(a, v):
        return
    if a.draw(st.booleans()):
        v = a.assign(f"{a.add(draw_norm(a, a.value(v).shape[1], rank_of(a, v)))}({v})") or v
    forms = ["{0}.flatten(2)", "{0}.reshape({0}.size(0), {0}.shape[1], -1)"]
    form = a.draw(st.sampled_from(forms))
    now = a.assign(f"{form.format(v)}.transpose(1, 2)")
    if now is None:
        return
    out = a.assign(f"{a.add(nn.Linear(a.value(now).shape[2], 3))}({now})")
    if out and a.draw(st.booleans()):
        a.assign(f"{a.add(nn.BatchNorm1d(3))}({out}.flatten(0, 1)).reshape_as({out})")


def _head(a: Author, v: str) -> None:
    """Pool to a vector, then linear and BN, in either order."""
    if not is_map(a, v):
        return
    rank = rank_of(a, v)
    if a.draw(st.booleans()):
        v = a.assign(f"{a.add(draw_norm(a, a.value(v).shape[1], rank))}({v})") or v
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


def _nested(a: Author, v: str) -> None:
    """Call a module whose forward is drawn in the same way."""
    if a.depth == 0 and is_map(a, v):
        shapes = tuple(tuple(run[v].shape) for run in a.runs)
        part, source = draw_module(a.draw, shapes, a.kinds, 4, depth=1)
        name = f"m{len(a.module._modules)}"
        a.module.add_module(name, part)
        a.inner.append(f"# self.{name}\n{source}")
        a.assign(f"self.{name}({v}{a.draw(st.sampled_from(['', ', 2', ', k=2']))})")


# Structures that fold, or seem to, are drawn more often than what stands between them.
# The first kinds are the plainest: shrinking prefers them.
KINDS: list[Statement] = [
    write_conv,
    write_norm,
    *[write_conv_norm] * 2,
    *[write_parallel] * 5,
    *[write_chain] * 5,
    write_add,
    write_scalar,
    write_per_channel,
    write_activation,
    write_harmless,
    write_average,
    write_pad,
    _split,
    _cat,
    _spread,
    _route,
    *[_between_norms] * 4,
    *[_parts] * 2,
    *[_sum_of_two] * 2,
    *[write_norms_alone] * 2,
    *[write_norm_on_a_term] * 2,
    *[write_something_between] * 2,
    *[write_transposed] * 2,
    write_spelt,
    _features,
    *[_in_place] * 2,
    _in_place_module,
    *[_again] * 2,
    *[_chain_again] * 2,
    _tied,
    _functional,
    _channels_last,
    _tokens,
    _head,
    *[_nested] * 2,
    write_shape_scalar,
]
