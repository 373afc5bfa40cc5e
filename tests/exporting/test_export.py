"""An export is checked in its engine before it appears; whatever fails leaves no file."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from deploying import fold, network, real_inputs
from reparam.deploy.engines import Settings, declared_sizes_of, get_engine
from reparam.deploy.exporting import export, formats, read_metadata
from reparam.errors import ExportError, InputError, MissingExtraError, TrainingModeError

SUFFIXES = [
    entry.suffix
    for entry in formats()
    if entry.backend is None
    and entry.suffix in {".onnx", ".xml", ".safetensors", ".pt2"}
    and get_engine(entry.engine).available()
]
COMPILED = [s for s in SUFFIXES if s != ".safetensors"]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network()


@pytest.fixture(scope="module")
def fused(net):
    return fold(net)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_export_is_checked_against_the_trained_model(suffix, net, fused, tmp_path):
    result = export(
        fused, tmp_path / f"net{suffix}", real_inputs(), reference=net, source="tests:network"
    )
    assert result.parity.ok
    assert result.parity.top1_agreement == 1
    assert result.path.is_file()
    assert result.size_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    metadata = read_metadata(result.path)
    assert metadata["form"] == "fused"
    assert metadata["source"] == "tests:network"
    assert torch.__version__.startswith(metadata["written_with"]["torch"])
    assert metadata["parameters"] == sum(p.numel() for p in fused.parameters())


@pytest.mark.parametrize("suffix", COMPILED)
def test_written_file_takes_other_batches_and_sizes(suffix, net, fused, tmp_path):
    result = export(fused, tmp_path / f"net{suffix}", real_inputs(1), reference=net)
    assert result.dynamic_axes == ({0: "batch", 2: "height", 3: "width"},)
    runner = get_engine(result.engine).load(result.path, Settings())
    for shape in ((1, 3, 16, 16), (7, 3, 16, 16), (3, 3, 20, 28)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(runner.run((x,))[0], net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", COMPILED)
@pytest.mark.parametrize(("dynamic", "axes"), [("batch", {0: "batch"}), (False, {})])
def test_fixed_dimensions_stay_fixed(suffix, dynamic, axes, fused, tmp_path):
    result = export(fused, tmp_path / f"net{suffix}", real_inputs(), dynamic=dynamic)
    assert result.dynamic_axes == (axes,)
    if suffix != ".onnx":
        shape = real_inputs().shape
        sizes = [None if d in axes else size for d, size in enumerate(shape)]
        assert declared_sizes_of(result.path) == sizes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_model_that_disagrees_is_an_error_and_writes_nothing(suffix, net, fused, tmp_path):
    wrong = copy.deepcopy(fused)
    with torch.no_grad():
        wrong[1].conv.weight[0] *= 1.001
    with pytest.raises(ExportError, match=r"differs from the reference.*nothing was kept"):
        export(wrong, tmp_path / f"net{suffix}", real_inputs(), reference=net)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_export_leaves_the_former_file(suffix, net, fused, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"former")
    wrong = copy.deepcopy(fused)
    with torch.no_grad():
        wrong[5].bias[0] += 1e-3
    with pytest.raises(ExportError):
        export(wrong, path, real_inputs(), reference=net)
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Rearranges(nn.Module):
    """Works for one size of input only: its linear layer sees every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("suffix", COMPILED)
def test_size_is_left_fixed_where_the_model_needs_it(suffix, tmp_path):
    result = export(Rearranges().eval(), tmp_path / f"net{suffix}", real_inputs())
    assert result.dynamic_axes == ({0: "batch"},)
    with pytest.raises(ExportError, match=r"with a variable size: .*dynamic=False"):
        export(Rearranges().eval(), tmp_path / f"other{suffix}", real_inputs(), dynamic="size")
    assert not (tmp_path / f"other{suffix}").exists()


class FixedBatch(nn.Module):
    """Works for one batch only."""

    def forward(self, x):
        return x.reshape(4, -1) @ torch.ones(3 * 16 * 16, 2)


def test_batch_that_cannot_vary_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ExportError, match=r"variable batch.*dynamic=False"):
        export(FixedBatch().eval(), tmp_path / "net.onnx", real_inputs())
    assert not list(tmp_path.iterdir())
    assert export(FixedBatch().eval(), tmp_path / "net.onnx", real_inputs(), dynamic=False)


class Unsupported(nn.Module):
    """An operator that torch.export traces and no exporter to ONNX or OpenVINO knows."""

    def forward(self, x):
        return torch.special.bessel_j0(x.mean((2, 3)))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_operator_a_format_lacks_is_an_error(suffix, tmp_path):
    with pytest.raises(ExportError, match=r"bessel_j0"):
        export(Unsupported().eval(), tmp_path / f"net{suffix}", real_inputs())
    assert not list(tmp_path.iterdir())


class Untraceable(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x - 1


@pytest.mark.parametrize("suffix", COMPILED)
def test_model_that_cannot_be_traced_is_an_error(suffix, tmp_path):
    with pytest.raises(ExportError, match=r"torch\.export could not trace Untraceable"):
        export(Untraceable().eval(), tmp_path / f"net{suffix}", real_inputs(), dynamic=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "package"),
    [(".onnx", "onnxruntime"), (".onnx", "onnxscript"), (".xml", "openvino")],
)
def test_missing_package_names_the_extra(suffix, package, monkeypatch, fused, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*reparam\[deploy\]"):
        export(fused, tmp_path / f"net{suffix}", real_inputs())
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_an_error(fused, tmp_path):
    with pytest.raises(ExportError, match="does not exist"):
        export(fused, tmp_path / "nowhere" / "net.safetensors", real_inputs())


def test_read_only_folder_is_an_error():
    # The super-user may write anywhere, so the test becomes somebody else in a process of its own.
    script = """
        import os, sys, tempfile, torch
        from deploying import network, real_inputs
        from reparam.errors import ExportError
        from reparam.deploy.exporting import export
        folder = tempfile.mkdtemp(dir="/tmp")
        os.chmod(folder, 0o555)
        os.getuid() or os.setuid(65534)
        try:
            export(network(), os.path.join(folder, "net.safetensors"), real_inputs())
        except ExportError as error:
            print("ExportError:", error)
    """
    paths = os.pathsep.join(dict.fromkeys(p for p in sys.path if p))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("ExportError:"), done.stdout + done.stderr
    assert "not writable" in done.stdout


@pytest.fixture
def small_files():
    """Let no file of this process grow beyond 2 kB: writes fail where a full disk makes them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_that_does_not_fit_is_an_error_and_leaves_nothing(suffix, fused, tmp_path):
    with pytest.raises(ExportError, match=r"larger than|could not be written"):
        export(fused, tmp_path / f"net{suffix}", real_inputs(), dynamic=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.getuid() or not mount or not umount:
        pytest.skip("only the super-user can make a small disk")
    options = ["-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    # Lazily: a process that still looks into it must not keep it.
    subprocess.run([umount, "-l", str(folder)], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_is_an_error_and_leaves_nothing(suffix, small_disk):
    net = nn.Sequential(nn.Conv2d(3, 512, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ExportError, match=r"no space is left|has 0\.0 MB free"):
        export(net, small_disk / f"net{suffix}", torch.randn(2, 3, 16, 16), dynamic=False)
    assert not list(small_disk.iterdir())


def test_training_mode_is_an_error(fused, tmp_path):
    with pytest.raises(TrainingModeError, match="eval mode"):
        export(network().train(), tmp_path / "net.onnx", real_inputs())
    with pytest.raises(TrainingModeError, match="reference"):
        export(fused, tmp_path / "net.onnx", real_inputs(), reference=network().train())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "net.mlmodel"}, r"'\.mlmodel', which is no export format; known .*\.onnx"),
        ({"path": "net"}, "no export format"),
        ({"backend": "none"}, "no backend 'none'"),
        ({"form": "deploy"}, "form is 'deploy'"),
        ({"dynamic": "channels"}, "dynamic is 'channels'"),
        ({"example_inputs": ()}, "example_inputs is empty"),
    ],
)
def test_wrong_arguments_say_what_is_needed(arguments, message, fused, tmp_path):
    given = {"path": "net.onnx", "example_inputs": real_inputs()} | arguments
    with pytest.raises(InputError, match=message):
        export(fused, tmp_path / given.pop("path"), given.pop("example_inputs"), **given)


def test_tied_weights_are_written_under_every_name(tmp_path):
    layer = nn.Conv2d(3, 3, 3, padding=1)
    tied = nn.Sequential(layer, nn.ReLU(), layer).eval()
    assert export(tied, tmp_path / "net.safetensors", real_inputs()).parity.ok


def test_form_defaults_to_what_the_reference_says(net, fused, tmp_path):
    x, path = real_inputs(), tmp_path / "net.safetensors"
    export(net, path, x)
    assert read_metadata(path)["form"] == "train"
    export(fused, path, x, reference=net)
    assert read_metadata(path)["form"] == "fused"
    export(fused, path, x, form="fused")
    assert read_metadata(path)["form"] == "fused"


def test_foreign_files_have_no_metadata(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert read_metadata(tmp_path / "a.safetensors") == {}
    with pytest.raises(InputError, match="no file"):
        read_metadata(tmp_path / "missing.onnx")


def test_model_is_not_changed(fused, tmp_path):
    state = {k: v.clone() for k, v in fused.state_dict().items()}
    for suffix in SUFFIXES:
        export(fused, tmp_path / f"net{suffix}", real_inputs())
    assert all(torch.equal(v, state[k]) for k, v in fused.state_dict().items())
