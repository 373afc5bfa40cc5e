"""Statements with norms that no layer takes, branches with something between, transposed layers."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import nn

from authors import Author
from layer_statements import CONV, draw_norm, is_map, rank_of

__all__ = [
    "normed",
    "write_norm_on_a_term",
    "write_norms_alone",
    "write_something_between",
    "write_spelt",
    "write_transposed",
]


def normed(a: Author, v: str) -> str:
    """Put a norm behind a value, most of the time."""
    if a.draw(st.sampled_from([True, True, False])):
        return a.assign(f"{a.add(draw_norm(a, a.value(v).shape[1], rank_of(a, v)))}({v})") or v
    return v


def write_norms_alone(a: Author, v: str) -> None:
    """Norms behind each other or added up, with no layer beside them."""
    if not is_map(a, v):
        return
    width, rank = a.value(v).shape[1], rank_of(a, v)
    v = a.assign(f"torch.tanh({v})") or v
    first, second = (a.add(draw_norm(a, width, rank)) for _ in range(2))
    forms = ["{1}({0}({v}))", "{0}({v}) + {1}({v})", "{v} - 2 * {0}({v})", "{1}({0}({v}) / 3 + 1)"]
    total = a.assign(a.draw(st.sampled_from(forms)).format(first, second, v=v))
    if total and a.draw(st.booleans()):
        a.assign(f"torch.tanh({total})")


def write_norm_on_a_term(a: Author, v: str) -> None:
    """A norm behind an activation is added to what a layer or norm makes, and a layer follows."""
    if not is_map(a, v):
        return
    draw, width, rank = a.draw, a.value(v).shape[1], rank_of(a, v)
    make = draw(st.sampled_from([CONV[rank](width, width, 1), draw_norm(a, width, rank)]))
    base = a.assign(f"{a.add(make)}(torch.tanh({v}))")
    groups = draw(st.sampled_from([1, width]))
    inner = CONV[rank](width, width, 3, padding=1, groups=groups, bias=draw(st.booleans()))
    branch = a.assign(f"{a.add(draw_norm(a, width, rank))}(torch.relu({a.add(inner)}({base})))")
    form = draw(st.sampled_from(["{0} + {1}", "{1} - {0}", "torch.add({0}, {1}, alpha=-2)"]))
    total = a.assign(form.format(branch, base)) if base and branch else None
    if total:
        size, pad = draw(st.sampled_from([(1, 0), (2, 0), (3, 1)]))
        a.assign(f"{a.add(CONV[rank](width, 2, size, padding=pad))}({total})")


def write_something_between(a: Author, v: str) -> None:
    """Branches of one value that are added one by one, with something else among them."""
    if not is_map(a, v):
        return
    draw, width, rank = a.draw, a.value(v).shape[1], rank_of(a, v)
    terms = [f"torch.tanh({v})"]
    for size in draw(st.lists(st.sampled_from([3, 1]), min_size=1, max_size=2)):
        conv = CONV[rank](width, width, size, padding=size // 2, bias=draw(st.booleans()))
        terms.append(a.assign(f"{a.add(conv)}({v})") or v)
    terms += [v] * draw(st.sampled_from([0, 1]))
    signs = draw(st.sampled_from([" + ", " - "]))
    a.assign(signs.join(draw(st.permutations(terms))))


def write_transposed(a: Author, v: str) -> None:
    """Transposed convolutions alone or in pairs, some of which are convolutions."""
    if not is_map(a, v) or a.value(v).numel() > 4000:
        return
    draw, width, rank = a.draw, a.value(v).shape[1], rank_of(a, v)
    kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
    size, stride, pad = draw(st.sampled_from([(3, 1, 1), (3, 1, 2), (2, 2, 0), (3, 1, 0)]))
    groups = draw(st.sampled_from([1, width]))
    names = []
    for k in range(draw(st.sampled_from([1, 2]))):
        if k and stride == 2:  # as large, with other taps
            size, pad = draw(st.sampled_from([(2, 0), (4, 1), (6, 2)]))
        layer = kind(width, width, size, stride, pad, groups=groups, bias=draw(st.booleans()))
        read = normed(a, v) if draw(st.booleans()) else f"({v} * 0.5)"
        names.append(a.assign(f"{a.add(layer)}({read})"))
    if all(names):
        form = draw(st.sampled_from([" + ", " - "]))
        normed(a, a.assign(form.join(map(str, names))) or v)


def write_spelt(a: Author, v: str) -> None:
    """Layers and sums by other names."""
    if not is_map(a, v):
        return
    width, rank = a.value(v).shape[1], rank_of(a, v)
    letters = "hwd"[:rank]
    left = a.assign(f"{a.add(CONV[rank](width, width, 3, padding=1))}({v})") or v
    # Of one channel it is no product of matrices, and no layer is counted.
    forms = [] if width == 1 else [
        f"torch.einsum('bc{letters},oc->bo{letters}', {normed(a, v)}, {a.parameter(3, width)})"
    ]  # fmt: skip
    forms += [
        f"torch.stack([{v}, {left}]).mean(0)",
        f"torch.stack([{left}, {v}], -1).sum(-1)",
        f"torch.lerp({v}, {left}, 0.3)",
        f"{v} * 0.25 + {left} * 0.75",
    ]
    a.assign(a.draw(st.sampled_from(forms)))
