"""Whatever graph is drawn: the fused one is valid, equal up to float64 rounding, and no dearer."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

import reparam
from accounting import unaccounted
from onnx_graphs import Graph, evaluate
from reparam.graph.onnx_lift import lift_onnx

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
            self.identity, self.concat, self.pool, self.pad, self.transposed,
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
        group = self.draw(st.sampled_from((1, 1, 2)))
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

    def transposed(self) -> None:
        x = self.pick()
        channels, size = self.values[x]
        y = self.g.op("ConvTranspose", x, self.g.random(channels, 2, 1, 1))
        self.keep(y, 2, size)

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
