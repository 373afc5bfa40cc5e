"""Layers and sums by other names, norms without a layer, and branches with something between."""

from __future__ import annotations

import numpy as np
import pytest

import reparam
from onnx_graphs import Graph, assert_equal, counts

SIZES = (2, 8, 6, 8)


def left_of(model, sample=None):
    """Fuse, compare, and count what is left."""
    fused = reparam.fuse(model)
    assert_equal(model, fused, sample)
    return counts(fused)


# ------------------------------------------------------------------------------ stacks


def stacked(kind, at, *, named=None, keepdims=0, opset=17, joined=None):
    """Two branches, each with an axis of its own, joined and added up over it."""
    g = Graph(*SIZES)
    branches = [g.conv(g.x, pads=[1] * 4), g.norm(g.conv(g.x, size=1))]
    parts = [g.op("Unsqueeze", branch, g.integers(at)) for branch in branches]
    stack = g.op("Concat", *parts, axis=at if joined is None else joined)
    over = at if named is None else named
    if kind == "ReduceSum" or opset > 17:
        total = g.op(kind, stack, g.integers(over), keepdims=keepdims)
    else:
        total = g.op(kind, stack, axes=[over], keepdims=keepdims)
    return g.model(g.relu(total), opset=opset)


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("at", [0, 1, 3, 4, -1])
def test_branches_that_are_stacked_and_added_up_fold(kind, at):
    assert left_of(stacked(kind, at)) == {"Conv": 1, "Relu": 1}
    assert left_of(stacked(kind, at, named=at % 5, opset=18)) == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize(
    "model",
    [
        stacked("ReduceSum", 0, keepdims=1),
        stacked("ReduceMean", 0, named=1),
        stacked("ReduceMax", 0),
        stacked("ReduceSum", 0, joined=1),
    ],
    ids=["kept", "another axis", "largest", "joined elsewhere"],
)
def test_stacks_that_are_read_otherwise_are_left(model):
    assert left_of(model)["Conv"] == 2


def test_a_stack_that_is_also_an_output_or_holds_other_values_is_left():
    g = Graph(*SIZES)
    parts = [g.op("Unsqueeze", g.conv(g.x, size=1), g.integers(0)) for _ in range(2)]
    stack = g.op("Concat", *parts, axis=0)
    total = g.op("ReduceSum", stack, g.integers(0), keepdims=0)
    assert left_of(g.model(total, stack))["Conv"] == 2
    g = Graph(*SIZES)
    values = g.conv(g.x, size=1), g.conv(g.relu(g.x), size=1)
    parts = [g.op("Unsqueeze", value, g.integers(0)) for value in values]
    total = g.op("ReduceSum", g.op("Concat", *parts, axis=0), g.integers(0), keepdims=0)
    assert left_of(g.model(total))["Conv"] == 2


# ------------------------------------------------------------------------------ products


EINSUMS = {
    "bchw,oc->bohw": (lambda _, x: x, (5, 8)),
    "bchw, co -> bohw": (lambda _, x: x, (8, 5)),
    "bhwc,oc->bhwo": (lambda g, x: g.op("Transpose", x, perm=[0, 2, 3, 1]), (5, 8)),
    "...c,co->...o": (lambda g, x: g.op("Transpose", x, perm=[0, 2, 3, 1]), (8, 5)),
}


@pytest.mark.parametrize("equation", EINSUMS)
@pytest.mark.parametrize("first", [True, False])
def test_a_norm_goes_into_an_einsum_with_a_constant(equation, first):
    g = Graph(*SIZES)
    step, shape = EINSUMS[equation]
    operands, (written, result) = (
        [step(g, g.norm(g.relu(g.x))), g.random(*shape)],
        equation.split("->"),
    )
    if not first:
        operands.reverse()
        written = ",".join(reversed(written.split(",")))
    model = g.model(g.op("Einsum", *operands, equation=f"{written}->{result}"))
    left = left_of(model)
    assert "BatchNormalization" not in left
    assert "Einsum" not in left


@pytest.mark.parametrize("equation", ["bchw,oc->bhwo", "bchw,oh->bcow", "bchw,cc->bchw"])
def test_products_of_another_kind_leave_the_norm(equation):
    g = Graph(2, 8, 8, 8)
    model = g.model(g.op("Einsum", g.norm(g.relu(g.x)), g.random(8, 8), equation=equation))
    assert left_of(model)["BatchNormalization"] == 1


# ------------------------------------------------------------------------------ arithmetic


def normalised(pads, form):
    g = Graph("n", 8, "h", "w")
    shift, scale = g.random(8, 1, 1), g.weight(g.rng.uniform(0.5, 2.0, size=(1, 8, 1, 1)))
    if form == "sub, div":
        x = g.op("Div", g.op("Sub", g.x, shift), scale)
    else:
        x = g.op("Add", g.op("Mul", g.x, scale), shift)
    return g.model(g.relu(g.conv(x, pads=pads, bias=True)))


def test_the_normalisation_of_the_input_goes_into_the_first_layer():
    for form in ("sub, div", "mul, add"):
        assert left_of(normalised([0] * 4, form)) == {"Conv": 1, "Relu": 1}
    assert left_of(normalised([1] * 4, "sub, div")) == {"Sub": 1, "Conv": 1, "Relu": 1}
    # The shift that comes last would have to be another one, and stays with its factor.
    assert left_of(normalised([1] * 4, "mul, add"))["Add"] == 1


@pytest.mark.parametrize("shape", [(), (8, 1, 1)])
def test_a_gate_of_constants_between_a_layer_and_its_input(shape):
    g = Graph(*SIZES)
    x, gate = g.relu(g.x), g.weight(g.rng.uniform(0.2, 0.8, size=shape))
    rest = g.op("Sub", g.weight(np.ones(())), gate)
    kept, made = g.op("Mul", x, rest), g.op("Mul", g.conv(x, pads=[1] * 4), gate)
    left = left_of(g.model(g.op("Add", kept, made)))
    assert (left["Conv"], left.get("Mul", 0), left.get("Add", 0)) == (1, 0, 0)


# ------------------------------------------------------------------------------ norms alone


def test_norms_that_no_layer_takes_become_one():
    for join in ("chain", "sum", "residual"):
        g = Graph()
        x = g.relu(g.x)
        if join == "chain":
            y = g.norm(g.op("Mul", g.norm(x), g.weight(2.0)))
        else:
            y = g.op("Sub", g.norm(x), g.norm(x) if join == "sum" else x)
        model = g.model(g.op("Tanh", y))
        assert left_of(model) == {"Relu": 1, "BatchNormalization": 1, "Tanh": 1}
        plan = reparam.plan(model)
        assert [region.into for region in plan.regions] == ["batch norm"]
        assert len([r for r in plan.refusals if r.what == "batch norm"]) == 1


def test_norms_with_something_between_or_read_elsewhere_stay():
    g = Graph()
    assert left_of(g.model(g.norm(g.relu(g.norm(g.relu(g.x))))))["BatchNormalization"] == 2
    g = Graph()
    first = g.norm(g.relu(g.x))
    assert left_of(g.model(g.norm(first), first))["BatchNormalization"] == 2


@pytest.mark.parametrize(("pads", "left"), [([0] * 4, 1), ([1] * 4, 2)])
def test_a_norm_on_a_term_goes_behind_the_sum(pads, left):
    g = Graph()
    base = g.norm(g.relu(g.x))
    branch = g.relu(g.conv(base, group=8, pads=[1] * 4))
    model = g.model(g.relu(g.conv(g.op("Sub", base, g.norm(branch)), pads=pads)))
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            scale = next(t for t in model.graph.initializer if t.name == node.input[1])
            scale.raw_data = np.linspace(0.5, 2.0, 8).tobytes()
    assert left_of(model)["BatchNormalization"] == left


# ------------------------------------------------------------------------------ sums


def between(form):
    g = Graph()
    a, n, b = g.conv(g.x, pads=[1] * 4), g.op("Tanh", g.x), g.norm(g.conv(g.x, size=1))
    total = {
        "a - n - b": lambda: g.op("Sub", g.op("Sub", a, n), b),
        "b + (n - a)": lambda: g.op("Add", b, g.op("Sub", n, a)),
        "a + n + x": lambda: g.op("Add", g.op("Add", a, n), g.x),
        "n + x + b": lambda: g.op("Add", g.op("Add", n, g.x), b),
    }[form]()
    return g.model(g.relu(total))


@pytest.mark.parametrize("form", ["a - n - b", "b + (n - a)", "a + n + x", "n + x + b"])
def test_branches_are_added_first_where_something_else_comes_between(form):
    left = left_of(between(form))
    assert left.get("Add", 0) + left.get("Sub", 0) == 1
    assert left["Conv"] == (2 if "x" in form else 1)  # one is not read


# ------------------------------------------------------------------------------ transposed


SAME = {
    "plain": {"strides": [2, 2]},
    "padded": {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]},
    "uneven": {"strides": [3, 2]},
    "dilated": {"strides": [2, 2], "dilations": [2, 1]},
}


@pytest.mark.parametrize("how", SAME.values(), ids=SAME)
def test_transposed_branches_of_one_kind_become_one(how):
    g = Graph(*SIZES)
    first, second = (
        g.op("ConvTranspose", g.x, *numbers, **how)
        for numbers in ([g.random(8, 8, 3, 2), g.random(8)], [g.random(8, 8, 3, 2)])
    )
    model = g.model(g.relu(g.norm(g.op("Sub", first, second))))
    assert left_of(model) == {"ConvTranspose": 1, "Relu": 1}


@pytest.mark.parametrize(
    "other", [{"pads": [0, 1, 1, 0]}, {"pads": [1, 1, 1, 1], "output_padding": [1, 1]}]
)
def test_transposed_branches_of_several_kinds_stay_two(other):
    g = Graph(*SIZES)
    first, second = (
        g.op("ConvTranspose", g.x, g.random(8, 8, 3, 3), strides=[2, 2], **how)
        for how in ({"pads": [1, 0, 0, 1]}, other)
    )
    assert left_of(g.model(g.op("Add", first, second)))["ConvTranspose"] == 2


@pytest.mark.parametrize(
    ("how", "turned"),
    [
        ({"pads": [1, 1, 1, 1]}, True),
        ({"pads": [1, 0, 2, 2]}, True),
        ({"pads": [2, 1, 2, 1], "dilations": [2, 1]}, True),
        ({"pads": [0, 0, 1, 1]}, False),
        ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, False),
    ],
    ids=range(5),
)  # fmt: skip
def test_a_transposed_convolution_of_stride_one_is_a_convolution(how, turned):
    g = Graph(*SIZES)
    y = g.op("ConvTranspose", g.x, g.random(8, 6, 3, 3), g.random(6), **how)
    left = left_of(g.model(g.relu(g.norm(y, 6))))
    assert left == {"Conv" if turned else "ConvTranspose": 1, "Relu": 1}
