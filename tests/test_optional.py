"""Optional packages: found, missing, half installed; and a core that does without any of them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from extras import EXTRAS_ONLY
from reparam._support.optional import available, require
from reparam.errors import MissingExtraError, ReparamError

# Their modules may import optional packages at the top; everything else is core.
ROOMS_THAT_MEET_OTHER_PACKAGES = ["cli", "deploy", "integrations", "lab", "report"]


def test_an_installed_module_is_returned():
    assert require("json", extra="deploy", purpose="reading") is json


def test_a_submodule_is_returned_itself():
    assert require("json.decoder", extra="deploy", purpose="reading") is json.decoder


def test_a_missing_package_names_purpose_package_and_command():
    with pytest.raises(MissingExtraError) as caught:
        require("surely_not_installed.part", extra="deploy", purpose="exporting to ONNX")
    message = str(caught.value)
    assert message.startswith("exporting to ONNX needs the package 'surely_not_installed'")
    assert message.endswith("pip install 'reparam[deploy]'")


def test_a_missing_package_can_be_caught_as_import_error_and_as_ours():
    for kind in (ImportError, ReparamError):
        with pytest.raises(kind):
            require("surely_not_installed", extra="deploy", purpose="exporting")


@pytest.mark.parametrize(("module", "pip_name"), [("sklearn", "scikit-learn"), ("PIL", "pillow")])
def test_a_package_is_named_as_pip_names_it(module, pip_name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # to the import system: not installed
    with pytest.raises(MissingExtraError, match=f"'{pip_name}'"):
        require(module, extra="train", purpose="reading digits")


def test_what_an_installed_module_misses_is_named_instead_of_it(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="'surely_not_installed'"):
        require("half_installed", extra="deploy", purpose="exporting")


def test_a_module_that_an_old_version_lacks_is_named_in_full():
    with pytest.raises(MissingExtraError, match=r"'json\.surely_missing'"):
        require("json.surely_missing", extra="deploy", purpose="reading")


def test_a_broken_package_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libbroken.so: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="libbroken") as caught:
        require("broken_package", extra="deploy", purpose="exporting")
    assert not isinstance(caught.value, MissingExtraError)


def test_available_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "explosive.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert available("explosive")
    assert not available("surely_not_installed")


def test_every_core_module_imports_with_torch_alone():
    program = f"""
        import importlib, pkgutil, sys
        sys.modules.update(dict.fromkeys({EXTRAS_ONLY}))  # to the import system: not installed
        import reparam
        for module in pkgutil.walk_packages(reparam.__path__, "reparam."):
            if module.name.split(".")[1] not in {ROOMS_THAT_MEET_OTHER_PACKAGES}:
                importlib.import_module(module.name)
                print(module.name)
    """
    assert "reparam.errors" in run_python(textwrap.dedent(program)).split()


def test_training_without_its_extra_says_what_brings_it():
    program = """
        import sys
        sys.modules["lightning"] = None  # to the import system: not installed
        import reparam
        try:
            reparam.train
        except reparam.ReparamError as error:
            print(error)
    """
    assert "reparam[train]" in run_python(textwrap.dedent(program))


@pytest.mark.parametrize(
    ("room", "package", "extra"),
    [("lightning", "lightning", "train"), ("onnx_passes", "onnxscript", "deploy"),
     ("olive", "olive", "olive")],
)  # fmt: skip
def test_an_integration_without_its_extra_says_what_brings_it(room, package, extra):
    program = f"""
        import sys
        sys.modules["{package}"] = None  # to the import system: not installed
        import reparam
        try:
            import reparam.integrations.{room}
        except reparam.ReparamError as error:
            print(error)
    """
    assert f"reparam[{extra}]" in run_python(textwrap.dedent(program))


def run_python(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
