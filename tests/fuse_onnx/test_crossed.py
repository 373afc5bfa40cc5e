"""Norms that fold across what moves, averages or picks the elements of channels, and sums."""

from __future__ import annotations

import pytest

import reparam
from onnx_graphs import TOLERANCE, Graph, assert_equal, counts

SIZES = ("n", 8, 6, 8)


def behind(step, width=8, cout=8):
    """Conv, the step, norm, relu."""
    g = Graph(*SIZES)
    return g.model(g.relu(g.norm(step(g, g.conv(g.x, cout=cout, pads=[1] * 4)), width)))


def before(step, width=8):
    """Relu, norm, the step, 1x1 convolution."""
    g = Graph(*SIZES)
    return g.model(g.conv(step(g, g.norm(g.relu(g.x))), width, 4, 1, bias=True))


def resized(mode="linear", scales=(1, 1, 2, 2), **how):
    return lambda g, x: g.op("Resize", x, "", g.floats(*scales), mode=mode, **how)


def padded(mode):
    return lambda g, x: g.op("Pad", x, g.integers(0, 0, 1, 2, 0, 0, 0, 1), mode=mode)


def pooled(kind, **how):
    return lambda g, x: g.op(kind, x, **how)


SPREAD = {
    "nearest": resized("nearest", coordinate_transformation_mode="asymmetric"),
    "linear": resized("linear"),
    "corners aligned": resized("linear", coordinate_transformation_mode="align_corners"),
    "cubic": resized("cubic", (1, 1, 1.5, 0.5)),
    "cubic of what is inside": resized("cubic", exclude_outside=1),
    "reflected": padded("reflect"),
    "edge": padded("edge"),
    "average": pooled("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    "average of what is there": pooled("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "average, cut off": pooled("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average as large": pooled("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
    "max": pooled("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    "global max": pooled("GlobalMaxPool"),
}


def with_factors(model, sign):
    """Let the factors of norms be of one sign, or of both."""
    from onnx import numpy_helper

    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
            value = abs(numpy_helper.to_array(tensor))
            value[0] *= sign
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.mark.parametrize("step", SPREAD.values(), ids=SPREAD)
@pytest.mark.parametrize("place", [behind, before])
def test_a_norm_passes_means_of_positions_and_maxima(place, step):
    model = with_factors(place(step), 1)
    fused = reparam.fuse(model)
    assert "BatchNormalization" not in counts(fused)
    # The evaluator computes the weights of cubic interpolation in float32, to a sum of nearly one.
    assert_equal(model, fused, tolerance=1e-6 if step is SPREAD["cubic"] else TOLERANCE)


ALMOST = {
    "zeros": padded("constant"),
    "average of zeros": pooled(
        "AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "powers": pooled("LpPool", kernel_shape=[2, 2]),
    "channels, too": resized("linear", (1, 0.5, 1, 1)),
    "max": SPREAD["max"],
}


@pytest.mark.parametrize("step", ALMOST.values(), ids=ALMOST)
@pytest.mark.parametrize("place", [behind, before])
def test_a_norm_stays_beside_what_is_no_mean_or_turned_around(place, step):
    width = 4 if step is ALMOST["channels, too"] else 8
    model = with_factors(place(step, width), -1)
    plan = reparam.plan(model)
    assert counts(plan.apply())["BatchNormalization"] == 1
    assert plan.refusals
    assert_equal(model, plan.apply())


def shuffled(g, x):
    divided = g.op("Reshape", x, g.integers(0, 2, 4, 6, 8))
    turned = g.op("Transpose", divided, perm=[0, 2, 1, 3, 4])
    return g.op("Reshape", turned, g.integers(0, 8, 6, 8))


def swapped(g, x):
    left, right = g.op("Split", x, g.integers(3, 5), outputs=2, axis=1)
    return g.op("Concat", right, left, axis=1)


def sliced(g, x):
    return g.op("Slice", x, g.integers(2), g.integers(7), g.integers(1))


def every_second(axis, size):
    return lambda g, x: g.op("Slice", x, *(g.integers(n) for n in (0, size, axis, 2)))


ROUTED = {
    "shuffle": (shuffled, 8),
    "parts": (swapped, 8),
    "slice": (sliced, 5),
    "channels apart": (every_second(1, 8), 4),
    "positions apart": (every_second(2, 6), 8),
    "gather": (lambda g, x: g.op("Gather", x, g.integers(7, -8, 3), axis=1), 3),
}


@pytest.mark.parametrize("step", ROUTED.values(), ids=ROUTED)
@pytest.mark.parametrize("place", [behind, before])
def test_a_norm_passes_what_moves_or_picks_channels(place, step):
    model = place(*step)
    fused = reparam.fuse(model)
    assert "BatchNormalization" not in counts(fused)
    assert_equal(model, fused)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_a_norm_passes_depth_to_space_backward_alone(mode):
    def step(g, x):
        return g.op("DepthToSpace", x, blocksize=2, mode=mode)

    for model, left in ((behind(step, 2), 0), (before(step, 2), 1)):
        fused = reparam.fuse(model)
        assert counts(fused).get("BatchNormalization", 0) == left
        assert_equal(model, fused)


def test_a_norm_passes_space_to_depth_forward_alone():
    def step(g, x):
        return g.op("SpaceToDepth", x, blocksize=2)

    for model, left in ((behind(step, 32), 1), (before(step, 32), 0)):
        fused = reparam.fuse(model)
        assert counts(fused).get("BatchNormalization", 0) == left
        assert_equal(model, fused)


def test_a_norm_passes_tiled_channels_forward_alone():
    def step(g, x):
        whole = g.op("Expand", x, g.integers(1, 1, 1, 1))
        return g.op("Tile", whole, g.integers(1, 3, 1, 1))

    for model, left in ((behind(step, 24), 1), (before(step, 24), 0)):
        fused = reparam.fuse(model)
        assert counts(fused).get("BatchNormalization", 0) == left
        assert_equal(model, fused)


def test_norms_before_flattened_images_and_a_concat():
    g = Graph(2, 8, 3, 4)
    flat = g.op("Flatten", g.norm(g.relu(g.x)))
    model = g.model(g.op("Gemm", flat, g.random(8 * 12, 5)))
    fused = reparam.fuse(model)
    assert "BatchNormalization" not in counts(fused)
    assert_equal(model, fused)

    g = Graph()
    parts = [g.norm(g.relu(g.x)), g.op("Tanh", g.x), g.norm(g.op("Sigmoid", g.x))]
    model = g.model(g.conv(g.op("Concat", *parts, axis=1), 24, 4, 1))
    fused = reparam.fuse(model)
    assert "BatchNormalization" not in counts(fused)
    assert_equal(model, fused)


def test_norms_of_parts_and_of_overlapping_parts():
    g = Graph()
    x = g.conv(g.x)
    left, right = g.op("Split", x, g.integers(3, 5), outputs=2, axis=1)
    model = g.model(g.relu(g.norm(left, 3)), g.relu(g.norm(right, 5)))
    fused = reparam.fuse(model)
    assert "BatchNormalization" not in counts(fused)
    assert_equal(model, fused)

    g = Graph()
    x = g.conv(g.x)
    left = g.op("Slice", x, g.integers(0), g.integers(5), g.integers(1))
    right = g.op("Slice", x, g.integers(4), g.integers(8), g.integers(1))
    model = g.model(g.relu(g.norm(left, 5)), g.relu(right))
    fused = reparam.fuse(model)
    assert counts(fused)["BatchNormalization"] == 1
    assert_equal(model, fused)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
def test_a_norm_behind_a_sum_goes_into_layers_of_different_values(kind):
    g = Graph()
    total = g.op(kind, g.conv(g.x, bias=True), g.conv(g.relu(g.x)))
    model = g.model(g.relu(g.norm(total)))
    fused = reparam.fuse(model)
    assert counts(fused) == {"Conv": 2, kind: 1, "Relu": 2}
    assert_equal(model, fused)


def branches(make):
    g = Graph()
    left, right = make(g, g.op("Identity", g.x))
    return g.model(g.op("Add", g.conv(left, pads=[1] * 4), g.norm(g.conv(right, size=1))))


@pytest.mark.parametrize(
    "make",
    [
        lambda g, x: (g.relu(x), g.relu(x)),
        lambda g, x: (g.relu(x), g.relu(g.op("Identity", x))),
        lambda g, x: [g.op("Elu", x, alpha=0.5) for _ in range(2)],
        lambda g, x: [g.op("Clip", x, g.random(name=n)) for n in "ab"][:1] * 2,
    ],
    ids=range(4),
)
def test_branches_behind_equal_operations_of_one_value_fold(make):
    model = branches(make)
    fused = reparam.fuse(model)
    assert counts(fused)["Conv"] == 1
    assert_equal(model, fused)


@pytest.mark.parametrize(
    "make",
    [
        lambda g, x: (g.op("Elu", x, alpha=0.5), g.op("Elu", x, alpha=0.6)),
        lambda g, x: (g.relu(x), g.relu(g.relu(x))),
        lambda g, x: [g.op("Clip", x, g.weight(low)) for low in (0.1, 0.2)],
    ],
    ids=["attributes", "values", "constants"],
)
def test_branches_behind_operations_that_only_look_equal_are_left(make):
    model = branches(make)
    fused = reparam.fuse(model)
    assert counts(fused)["Conv"] == 2
    assert_equal(model, fused)


def test_an_equal_operation_that_is_an_output_stays():
    g = Graph()
    left, right = g.relu(g.x), g.relu(g.x)
    model = g.model(g.op("Add", g.conv(left, size=1), g.conv(right, size=1)), right)
    fused = reparam.fuse(model)
    assert counts(fused)["Relu"] == 2
    assert_equal(model, fused)
