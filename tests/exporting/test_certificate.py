"""A certificate says what was proven of a file, and holds for that content alone."""

from __future__ import annotations

import json
import zipfile

import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

import reparam
from reparam.deploy.exporting import certify, check_certificate
from reparam.errors import InputError
from zoo import randomise


def net():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return randomise(nn.Sequential(*layers, nn.Conv2d(4, 2, 1))).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SUFFIXES = (".onnx", ".pt2", ".safetensors")


@pytest.fixture(scope="module", params=SUFFIXES)
def written(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("certified") / f"net{request.param}"
    model = net()
    result = reparam.export(
        reparam.fuse(model, X), path, X, reference=model, certify=True, notes={"author": "me"}
    )
    return path, result.certificate


def test_a_file_holds_what_was_proven_of_it(written):
    path, certificate = written
    assert certificate.outcome == "equal"
    assert certificate.numbers > 100
    assert certificate.worst < 1
    assert check_certificate(path) == certificate
    held = reparam.read_metadata(path)
    assert held["author"] == "me"
    assert held["certificate"]["content"] == certificate.content


def test_a_file_that_is_made_of_a_file_says_what_was_proven_and_what_running_both_showed(tmp_path):
    graph = torch.onnx.export(net(), (X,), dynamo=True, verbose=False).model_proto
    source, path = tmp_path / "net.onnx", tmp_path / "fused.onnx"
    onnx.save(graph, source)
    onnx.save(reparam.fuse(graph), path)
    certificate = certify(source, path)
    assert (certificate.outcome, certificate.of) == ("equal", "file")
    assert certificate.sampled
    assert check_certificate(path) == certificate


def test_a_file_with_a_certificate_is_a_file_as_any(written):
    path, _ = written
    fused = reparam.fuse(net(), X)
    if path.suffix == ".safetensors":
        state = safetensors.torch.load_file(path)
        for name, value in fused.state_dict().items():
            assert torch.equal(state[name], value)
    else:
        assert reparam.diff(fused, path, X).outcome == "equal"


def with_a_changed_weight(path, out):
    """The file with one weight changed by a millionth."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        entry = model.graph.initializer[0]
        values = onnx.numpy_helper.to_array(entry).copy()
        values.flat[0] *= 1 + 1e-6
        entry.CopyFrom(onnx.numpy_helper.from_array(values, entry.name))
        onnx.save(model, out)
    elif path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
        state = safetensors.torch.load_file(path)
        next(iter(state.values())).flatten()[0] *= 1 + 1e-6
        safetensors.torch.save_file(state, out, metadata)
    else:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as changed:
            names = archive.namelist()
            weights = next(name for name in names if "weight" in name and not name.endswith("json"))
            for name in names:
                content = bytearray(archive.read(name))
                if name == weights:
                    content[0] ^= 1
                changed.writestr(name, bytes(content))


def test_a_changed_weight_is_found(written, tmp_path):
    path, _ = written
    changed = tmp_path / path.name
    with_a_changed_weight(path, changed)
    with pytest.raises(InputError):
        check_certificate(changed)


def test_changed_notes_are_no_other_content(written, tmp_path):
    path, certificate = written
    if path.suffix != ".onnx":
        return  # one kind shows it
    model = onnx.load(path)
    model.metadata_props.add(key="note", value="mine")
    onnx.save(model, tmp_path / "net.onnx")
    assert check_certificate(tmp_path / "net.onnx") == certificate


def test_what_is_another_function_is_not_certified(tmp_path):
    path = tmp_path / "net.safetensors"
    model = net()
    reparam.export(model, path, X)
    before = path.read_bytes()
    other = net()
    other[3].weight.data[0, 0] *= 1.01
    with pytest.raises(InputError):
        certify(other, path, X, model=model)
    assert path.read_bytes() == before
    assert check_certificate(path) is None


def test_what_holds_no_certificate_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(json.dumps({}))
    for call in (lambda: certify(net(), path, X), lambda: check_certificate(path)):
        with pytest.raises(InputError):
            call()
    with pytest.raises(InputError):
        check_certificate(tmp_path / "missing.onnx")


@pytest.mark.parametrize(("suffix", "package"), [(".xml", "openvino"), (".param", "ncnn")])
def test_what_diff_does_not_read_says_what_was_proven_and_what_was_sampled(
    suffix, package, tmp_path
):
    pytest.importorskip(package)
    path = tmp_path / f"net{suffix}"
    model = net()
    notes = {"author": '<"me">'}
    result = reparam.export(
        reparam.fuse(model, X), path, X, reference=model, certify=True, notes=notes
    )
    held = check_certificate(path)
    assert held == result.certificate
    assert (held.of, held.outcome) == ("model", "equal")
    assert "sampled" in held.sampled
    assert reparam.read_metadata(path)["author"] == notes["author"]
    weights = path.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(InputError):
        check_certificate(path)
    with pytest.raises(InputError):
        certify(model, path, X, model=model)


def test_a_file_of_weights_is_certified_for_the_module_that_has_them_alone(tmp_path):
    path = tmp_path / "net.safetensors"
    model, other = net(), net()
    reparam.export(model, path, X)
    other[3].weight.data[0, 0] *= 2
    with pytest.raises(InputError):
        certify(other, path, X, model=other)
    assert check_certificate(path) is None
    assert certify(model, path, X, model=model).of == "weights"


def test_programs_and_files_are_references_too(tmp_path):
    model = net()
    program = torch.export.export(model, (X,))
    for suffix in (".onnx", ".pt2"):
        reparam.export(model, tmp_path / f"net{suffix}", X)
    assert certify(program, tmp_path / "net.onnx", X).outcome == "equal"
    assert certify(tmp_path / "net.onnx", tmp_path / "net.pt2", X).outcome == "equal"


def test_a_certificate_that_is_none_is_refused(tmp_path):
    path = tmp_path / "net.onnx"
    reparam.export(net(), path, X)
    for text in ("[]", "3", "{}", '{"outcome": 3}', "no json"):
        model = onnx.load(path)
        model.metadata_props.add(key="reparam.certificate", value=text)
        onnx.save(model, tmp_path / "other.onnx")
        with pytest.raises(InputError):
            check_certificate(tmp_path / "other.onnx")
