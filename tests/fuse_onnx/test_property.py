"""Whatever graph is drawn: the fused one is valid, equal up to float64 rounding, and no dearer."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

import reparam
from accounting import unaccounted
from onnx_graphs import Graph, evaluate
from reparam.frontends.onnx.lift import lift_onnx

WIDTHS = (2, 4)
# Float64 rounding of some hundred operations on numbers of the size of the largest one inside.
TOLERANCE = 1e-9


class Walk:
    """Draws a graph, keeping the values that can still be read with their channels and scale."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.g = Graph(2, 4, 9, 8, seed=draw(st.integers(0, 2**16)))
        # Per value: channels, and how it shrank, so that only values of one size are added.
        self.values = {self.g.x: (4, (9, 8))}

    def pick(self, wanted=None):
        fitting = [v for v, known in self.values.items() if wanted in (None, known)]
        # Late values more often than early ones, so that graphs grow deep.
        return fitting[-1 - self.draw(st.integers(0, min(2, len(fitting) - 1)))]

    def step(self) -> None:
        kinds = (
            self.conv, self.conv, self.norm, self.add, self.add, self.scale, self.relu,
            self.identity, self.concat, self.pool, self.pad, self.transposed, self.spread,
            self.route, self.split, self.normed, self.normed, self.norms, self.term,
            self.between, self.spelt,
        )  # fmt: skip
        kinds[self.draw(st.integers(0, len(kinds) - 1))]()

    def keep(self, value, channels, size) -> None:
        self.values[value] = (channels, size)

    def conv(self) -> None:
        x = self.pick()
        cin, (height, width) = self.values[x]
        cout = self.draw(st.sampled_from(WIDTHS))
        size = self.draw(st.sampled_from((1, 1, 3, 2)))
        if size > min(height, width):
            return
        group = self.draw(st.sampled_from((1, 1, 2))) if cin % 2 == 0 else 1
        step = self.draw(st.sampled_from((1, 1, 1, 2)))
        low, high = self.draw(st.sampled_from(((0, 0), (1, 1), (0, 1), (1, 0))))
        how = {"pads": [low, low, high, high], "strides": [step, step], "group": group}
        if step == 1 and self.draw(st.integers(0, 4)) == 0:
            how = {"auto_pad": "SAME_UPPER", "group": group}
            low, high = 0, size - 1
        bias = self.draw(st.booleans())
        y = self.g.conv(x, cin, cout, size, bias=bias, **how)
        out = tuple((n + low + high - size) // step + 1 for n in (height, width))
        self.keep(y, cout, out)

    def norm(self) -> None:
        x = self.pick()
        self.keep(self.g.norm(x, self.values[x][0]), *self.values[x])

    def add(self) -> None:
        x = self.pick()
        y = self.pick(self.values[x])
        kind = self.draw(st.sampled_from(("Add", "Sub", "Sum")))
        self.keep(self.g.op(kind, x, y), *self.values[x])

    def scale(self) -> None:
        x = self.pick()
        channels = self.values[x][0]
        shape = self.draw(st.sampled_from(((channels, 1, 1), (1, channels, 1, 1), (), (1,))))
        kind = self.draw(st.sampled_from(("Mul", "Add", "Sub", "Div")))
        constant = self.g.weight(self.g.rng.uniform(0.5, 2.0, size=shape))
        order = (constant, x) if kind != "Div" and self.draw(st.booleans()) else (x, constant)
        self.keep(self.g.op(kind, *order), *self.values[x])

    def relu(self) -> None:
        x = self.pick()
        self.keep(self.g.relu(x), *self.values[x])

    def identity(self) -> None:
        x = self.pick()
        kind = self.draw(st.sampled_from(("Identity", "Dropout", "Neg")))
        self.keep(self.g.op(kind, x), *self.values[x])

    def concat(self) -> None:
        x = self.pick()
        y = self.pick(self.values[x])
        channels, size = self.values[x]
        if 2 * channels <= 8:
            self.keep(self.g.op("Concat", x, y, axis=1), 2 * channels, size)

    def pool(self) -> None:
        x = self.pick()
        channels, (height, width) = self.values[x]
        if min(height, width) < 2:
            return
        pads = self.draw(st.sampled_from(((0, 0), (1, 0), (1, 1))))
        y = self.g.op(
            "AveragePool", x, kernel_shape=[2, 2], pads=[pads[0]] * 2 + [pads[1]] * 2,
            count_include_pad=1,
        )  # fmt: skip
        self.keep(y, channels, (height + sum(pads) - 1, width + sum(pads) - 1))

    def pad(self) -> None:
        x = self.pick()
        channels, (height, width) = self.values[x]
        pads = self.draw(st.sampled_from(((1, 1, 1, 1), (0, 1, 2, 0))))
        size = (height + pads[0] + pads[2], width + pads[1] + pads[3])
        read = self.g.integers(0, 0, *pads[:2], 0, 0, *pads[2:])
        mode = self.draw(st.sampled_from(("constant", "edge")))
        self.keep(self.g.op("Pad", x, read, mode=mode), channels, size)

    def spread(self, x=None) -> None:
        x = x or self.pick()
        channels, (height, width) = self.values[x]
        if min(height, width) < 3 or max(height, width) > 20:
            return
        kind = self.draw(st.sampled_from(("resize", "max", "average", "cut", "transpose")))
        if kind == "resize":
            mode = self.draw(st.sampled_from(("nearest", "linear")))
            y = self.g.op("Resize", x, "", self.g.floats(1, 1, 2, 2), mode=mode)
            size = (2 * height, 2 * width)
        elif kind == "max":
            y = self.g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
            size = ((height - 1) // 2 + 1, (width - 1) // 2 + 1)
        elif kind == "average":
            y = self.g.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4)
            size = (height, width)
        elif kind == "cut":
            y = self.g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
            size = ((height + 1) // 2, (width + 1) // 2)
        else:
            y = self.g.op("Transpose", x, perm=[0, 1, 3, 2])
            size = (width, height)
        self.keep(y, channels, size)

    def route(self, x=None) -> None:
        x = x or self.pick()
        channels, size = self.values[x]
        kind = self.draw(st.sampled_from(("shuffle", "gather", "slice", "space")))
        if kind == "shuffle" and channels % 2 == 0:
            y = self.g.op("Reshape", x, self.g.integers(2, 2, channels // 2, *size))
            y = self.g.op("Transpose", y, perm=[0, 2, 1, 3, 4])
            self.keep(self.g.op("Reshape", y, self.g.integers(2, channels, *size)), channels, size)
        elif kind == "gather":
            order = self.g.integers(*range(channels - 1, -1, -1))
            self.keep(self.g.op("Gather", x, order, axis=1), channels, size)
        elif kind == "slice" and channels > 2:
            cut = [self.g.integers(n) for n in (1, channels, 1)]
            self.keep(self.g.op("Slice", x, *cut), channels - 1, size)
        elif kind == "space" and channels % 4 == 0 and max(size) < 12:
            mode = self.draw(st.sampled_from(("DCR", "CRD")))
            y = self.g.op("DepthToSpace", x, blocksize=2, mode=mode)
            self.keep(y, channels // 4, tuple(2 * n for n in size))

    def split(self) -> None:
        x = self.pick()
        channels, size = self.values[x]
        if channels < 2:
            return
        first = self.draw(st.integers(1, channels - 1))
        names = self.g.op("Split", x, self.g.integers(first, channels - first), outputs=2, axis=1)
        for name, width in zip(names, (first, channels - first), strict=True):
            self.keep(name, width, size)
            if self.draw(st.booleans()):
                self.keep(self.g.norm(name, width), width, size)

    def normed(self) -> None:
        """A layer, what a scale may pass, a norm; or the other way round."""
        backward = self.draw(st.booleans())
        count = len(self.values)
        (self.conv if backward else self.norm)()
        for _ in range(self.draw(st.integers(1, 2))):
            if len(self.values) > count:
                self.draw(st.sampled_from((self.spread, self.route)))(list(self.values)[-1])
        x = list(self.values)[-1]
        channels, size = self.values[x]
        if backward:
            self.keep(self.g.norm(x, channels), channels, size)
        else:
            self.keep(self.g.conv(x, channels, 2, 1), 2, size)

    def transposed(self) -> None:
        x = self.pick()
        channels, (height, width) = self.values[x]
        if max(height, width) > 12:
            return
        size, step, pad = self.draw(st.sampled_from(((1, 1, 0), (3, 1, 1), (2, 2, 0))))
        how = {"strides": [step] * 2, "pads": [pad] * 4}
        names = [
            self.g.op("ConvTranspose", x, self.g.random(channels, 2, size, size), **how)
            for _ in range(self.draw(st.integers(1, 2)))
        ]
        y = self.g.op("Sub", *names) if len(names) > 1 else names[0]
        self.keep(y, 2, (step * height, step * width))

    def norms(self) -> None:
        """Norms behind each other or added up, with no layer beside them."""
        x = self.pick()
        known = self.values[x]
        x = self.g.relu(x)
        y = self.g.norm(x, known[0])
        if self.draw(st.booleans()):
            y = self.g.norm(y, known[0])
        else:
            y = self.g.op("Sub", y, self.draw(st.sampled_from((x, self.g.norm(x, known[0])))))
        self.keep(y, *known)

    def term(self) -> None:
        """A norm behind an activation is added to another norm, and a layer follows."""
        x = self.pick()
        channels, size = self.values[x]
        base = self.g.norm(self.g.relu(x), channels)
        group = self.draw(st.sampled_from((1, channels)))
        branch = self.g.relu(self.g.conv(base, channels, channels, 3, pads=[1] * 4, group=group))
        total = self.g.op("Add", self.g.norm(branch, channels), base)
        self.keep(self.g.conv(total, channels, 2, 1), 2, size)

    def between(self) -> None:
        """Branches of one value that are added one by one, with something else among them."""
        x = self.pick()
        channels, size = self.values[x]
        terms = [self.g.relu(x), self.g.conv(x, channels, channels, 3, pads=[1] * 4)]
        terms.append(x if self.draw(st.booleans()) else self.g.conv(x, channels, channels, 1))
        first, second, third = self.draw(st.permutations(terms))
        kind = self.draw(st.sampled_from(("Add", "Sub")))
        self.keep(self.g.op(kind, self.g.op(kind, first, second), third), channels, size)

    def spelt(self) -> None:
        """Layers and sums by other names."""
        x = self.pick()
        channels, size = self.values[x]
        if self.draw(st.booleans()):
            weight = self.g.random(2, channels)
            y = self.g.op("Einsum", self.g.norm(x, channels), weight, equation="bchw,oc->bohw")
            self.keep(y, 2, size)
            return
        parts = [self.g.conv(x, channels, channels, 1), x]
        at = self.draw(st.sampled_from((0, 1, 4)))
        parts = [self.g.op("Unsqueeze", part, self.g.integers(at)) for part in parts]
        stack = self.g.op("Concat", *parts, axis=at)
        self.keep(self.g.op("ReduceMean", stack, axes=[at], keepdims=0), channels, size)

    def model(self):
        last = list(self.values)[-1]
        outputs = [last]
        if self.draw(st.integers(0, 3)) == 0:
            outputs.append(self.pick())
        names = [v for v in dict.fromkeys(outputs) if v != self.g.x]
        return self.g.model(*(names or [self.g.relu(self.g.x)]))


@st.composite
def models(draw):
    walk = Walk(draw)
    for _ in range(draw(st.integers(2, 14))):
        walk.step()
    return walk.model()


@settings(max_examples=60)
@given(model=models())
def test_any_graph_stays_equal_and_becomes_no_dearer(model):
    before = model.SerializeToString()

    fused = reparam.fuse(model)

    assert model.SerializeToString() == before
    onnx.checker.check_model(fused, full_check=True)
    x = np.random.default_rng(0).normal(size=(2, 4, 9, 8))
    for left, right in zip(evaluate(model, x), evaluate(fused, x), strict=True):
        assert left.shape == right.shape
        scale = max(np.abs(left).max(), 1.0)
        assert np.abs(left - right).max() <= TOLERANCE * scale
    assert len(fused.graph.node) <= len(model.graph.node)
    # A bias may take the place of single numbers.
    assert stored(fused) <= stored(model) + biases(fused)


def biases(model):
    """Numbers in biases."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return sum(sizes.get(name, 0) for node in model.graph.node for name in node.input[2:3])


def stored(model):
    """Numbers in initializers, those aside that are single or whole."""
    sizes = [int(np.prod(t.dims)) for t in model.graph.initializer if t.dims]
    return sum(sizes)


@given(models())
def test_each_norm_scale_and_branch_is_in_a_region_or_refused_once(model):
    plan = reparam.plan(model)
    assert unaccounted(plan, lift_onnx(model, 17)) == [], str(plan)
