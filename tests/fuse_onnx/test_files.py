"""Files: compared in ONNX Runtime before they are written, whole or not at all."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx_graphs import Graph, counts
from reparam.errors import InputError, VerificationError
from reparam.fusing import fuse_onnx_file
from reparam.fusing.onnx_compare import compare_onnx_files


def small(*shape):
    g = Graph(*(shape or ("n", 8, "h", "w")), dtype=TensorProto.FLOAT)
    start = g.relu(g.x)
    terms = [g.norm(g.conv(start, pads=[1, 1, 1, 1])), g.norm(g.conv(start, size=1))]
    return g.model(g.relu(g.op("Add", *terms)))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save_model(small(), path)
    return path


def fingerprints(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_a_file_is_fused_compared_and_written(source, tmp_path):
    before = fingerprints(tmp_path)
    out = tmp_path / "fused.onnx"

    result = fuse_onnx_file(source, out)

    assert counts(onnx.load(out)) == result.after == {"Relu": 2, "Conv": 1}
    assert result.before == {"Conv": 2, "BatchNormalization": 2, "Relu": 2, "Add": 1}
    assert result.verdict.ok
    # Zero would mean that the noise did not reach the weights.
    assert 0 < result.verdict.control < 1e-4
    assert len(result.plan.regions) == 1
    assert result.size_bytes == out.stat().st_size
    onnx.checker.check_model(out, full_check=True)
    after = fingerprints(tmp_path)
    assert set(after) == {"net.onnx", "fused.onnx"}
    assert after["net.onnx"] == before["net.onnx"]


def test_weights_beside_the_file_are_read_and_written_beside_the_new_one(tmp_path):
    source, out = tmp_path / "net.onnx", tmp_path / "fused.onnx"
    onnx.save_model(
        small(), source, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    before = fingerprints(tmp_path)

    result = fuse_onnx_file(source, out)

    after = fingerprints(tmp_path)
    assert set(after) == {"net.onnx", "weights.bin", "fused.onnx", "fused.onnx.data"}
    assert {name: after[name] for name in before} == before
    bare = onnx.load(out, load_external_data=False)
    assert any(t.data_location == TensorProto.EXTERNAL for t in bare.graph.initializer)
    assert counts(onnx.load(out)) == {"Relu": 2, "Conv": 1}
    assert result.size_bytes == sum((tmp_path / n).stat().st_size for n in set(after) - set(before))


def test_a_file_that_would_compute_something_else_is_not_written(source, tmp_path, monkeypatch):
    from reparam.fusing import onnx_graphs

    right = onnx_graphs.write_model

    def wrong(lifted, folded):
        model = right(lifted, folded)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.001, tensor.name)
            )
        return model

    monkeypatch.setattr(onnx_graphs, "write_model", wrong)

    with pytest.raises(VerificationError, match="nothing is written"):
        fuse_onnx_file(source, tmp_path / "fused.onnx")

    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "cut short"),
        (lambda whole: whole[:40], "cut short"),
        (lambda _: b"", "no IR version"),
        (lambda _: b"this is no model at all, only some words", "no ONNX file"),
        (lambda _: bytes(range(256)) * 4, "no ONNX file"),
    ],
)
def test_a_broken_file_is_an_input_error_and_nothing_is_written(content, words, source, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content(source.read_bytes()))
    before = fingerprints(tmp_path)

    with pytest.raises(InputError, match=words) as caught:
        fuse_onnx_file(broken, tmp_path / "fused.onnx")

    assert "broken.onnx" in str(caught.value)
    assert fingerprints(tmp_path) == before


def test_cut_or_missing_weights_are_an_input_error(tmp_path):
    source, weights = tmp_path / "net.onnx", tmp_path / "weights.bin"
    onnx.save_model(
        small(), source, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"net\.onnx"):
        fuse_onnx_file(source, tmp_path / "fused.onnx")

    weights.unlink()
    with pytest.raises(InputError, match=r"net\.onnx"):
        fuse_onnx_file(source, tmp_path / "fused.onnx")


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        fuse_onnx_file(tmp_path / "none.onnx", tmp_path / "fused.onnx")
    with pytest.raises(InputError, match="is a folder"):
        fuse_onnx_file(tmp_path, tmp_path / "fused.onnx")


def test_what_is_read_is_not_written_over(tmp_path):
    source = tmp_path / "net.onnx"
    onnx.save_model(
        small(), source, save_as_external_data=True, location="other.onnx.data", size_threshold=0
    )
    before = fingerprints(tmp_path)

    for name in ("net.onnx", "other.onnx"):
        with pytest.raises(InputError, match="a part of the model that is read"):
            fuse_onnx_file(source, tmp_path / name)

    assert fingerprints(tmp_path) == before


def test_shapes_that_do_not_run_are_asked_for(tmp_path):
    g = Graph("n", 8, "h", "w", dtype=TensorProto.FLOAT)
    y = g.norm(g.conv(g.x, pads=[1, 1, 1, 1]))
    model = g.model(g.op("Reshape", g.relu(y), g.integers(-1, 8, 5, 7)))
    source, out = tmp_path / "net.onnx", tmp_path / "fused.onnx"
    onnx.save_model(model, source)

    with pytest.raises(InputError, match="input_shapes"):
        fuse_onnx_file(source, out)
    with pytest.raises(InputError, match="no input 'picture'"):
        fuse_onnx_file(source, out, input_shapes={"picture": (1, 8, 5, 7)})
    assert not out.exists()

    assert fuse_onnx_file(source, out, input_shapes={"image": (1, 8, 5, 7)}).verdict.ok
    assert fuse_onnx_file(source, out, check=False).verdict is None


def test_half_precision_is_compared_with_its_own_noise(tmp_path):
    g = Graph(2, 8, 9, 9, dtype=TensorProto.FLOAT16)
    source = tmp_path / "net.onnx"
    onnx.save_model(g.model(g.relu(g.norm(g.conv(g.x)))), source)

    result = fuse_onnx_file(source, tmp_path / "fused.onnx")

    assert result.verdict.ok
    assert 1e-4 < result.verdict.control < 1e-1


def test_weights_in_constant_nodes_count_for_the_noise(tmp_path):
    """Converters from Paddle write them so; a file of them alone has roundings all the same."""
    model = small()
    made = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    del model.graph.initializer[:]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*made, *rest])
    source = tmp_path / "net.onnx"
    onnx.save_model(model, source)
    onnx.save_model(small(), tmp_path / "same.onnx")

    result = fuse_onnx_file(source, tmp_path / "fused.onnx")
    same = fuse_onnx_file(tmp_path / "same.onnx", tmp_path / "fused_same.onnx")

    assert result.after == same.after
    assert 0.1 * same.verdict.control < result.verdict.control < 10 * same.verdict.control


def test_factors_of_sizes_are_no_weights(tmp_path):
    """Changed by one unit in the last place, a factor of 2 gives one row less."""
    g = Graph(1, 8, 9, 9, dtype=TensorProto.FLOAT)
    y = g.norm(g.conv(g.x, pads=[1, 1, 1, 1]))
    large = g.op("Resize", y, "", g.weight([1.0, 1.0, 2.0, 2.0]), mode="nearest")
    last = g.op("Add", g.op("Slice", large, g.integers(17), g.integers(99), g.integers(2)), large)
    onnx.save_model(g.model(last), tmp_path / "net.onnx")

    assert fuse_onnx_file(tmp_path / "net.onnx", tmp_path / "fused.onnx").verdict.ok


def test_outputs_of_another_shape_differ(source, tmp_path):
    """Shapes that broadcast would compare equal."""
    model = onnx.load(source)
    [output] = model.graph.output
    axes = numpy_helper.from_array(np.array([0], dtype=np.int64), "axes")
    model.graph.initializer.append(axes)
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", [output.name, "axes"], ["row"]))
    output.CopyFrom(onnx.helper.make_tensor_value_info("row", TensorProto.FLOAT, None))
    onnx.save_model(model, tmp_path / "row.onnx")

    with pytest.raises(VerificationError, match=r"row\.onnx gives .*\(1, .* where net\.onnx"):
        compare_onnx_files(source, tmp_path / "row.onnx", onnx.load(source))


def test_a_number_of_results_that_hangs_on_rounding_is_an_input_error(tmp_path):
    """Of the values that are rounded down to zero, as many remain as the rounding likes."""
    g = Graph(2, 8, 64, 64, dtype=TensorProto.FLOAT)
    y = g.norm(g.conv(g.x, pads=[1, 1, 1, 1]))
    fine = g.op("Mul", y, g.weight(1e5))
    loss = g.op("Sub", fine, g.op("Floor", fine))
    kept = g.op("NonZero", g.op("Cast", g.op("Less", loss, g.weight(0.5)), to=TensorProto.FLOAT))
    model = g.model(g.op("Cast", kept, to=TensorProto.FLOAT))
    source = tmp_path / "net.onnx"
    onnx.save_model(model, source)

    with pytest.raises(InputError, match="depends on its rounding"):
        fuse_onnx_file(source, tmp_path / "fused.onnx")

    assert not (tmp_path / "fused.onnx").exists()
    fuse_onnx_file(source, tmp_path / "fused.onnx", check=False)


@pytest.mark.slow
def test_a_model_larger_than_one_file_holds(tmp_path):
    """2.2 GB of weights, most of them in a layer that folds nothing."""
    rng = np.random.default_rng(0)
    g = Graph("n", 8, 4, 4, dtype=TensorProto.FLOAT)
    y = g.op("Flatten", g.relu(g.norm(g.conv(g.x, pads=[1, 1, 1, 1]))))
    wide = 128 * 1024
    for shape in ((128, wide), (wide, 2048), (2048, wide)):
        numbers = rng.standard_normal(shape, dtype=np.float32) / shape[0] ** 0.5
        g.tensors.append(numpy_helper.from_array(numbers, f"large{shape[1]}_{shape[0]}"))
        y = g.relu(g.op("MatMul", y, g.tensors[-1].name))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            g.nodes,
            "large",
            [onnx.helper.make_tensor_value_info(g.x, TensorProto.FLOAT, list(g.shape))],
            [onnx.helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", wide])],
            g.tensors,
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    model.ir_version = 8
    source, out = tmp_path / "net.onnx", tmp_path / "fused.onnx"
    onnx.save_model(model, source, save_as_external_data=True, location="net.onnx.data")
    del model, g

    result = fuse_onnx_file(source, out)

    assert result.size_bytes > 2**31
    assert result.after["Conv"] == 1
    assert "BatchNormalization" not in result.after
    assert result.verdict.ok
