"""Files are written whole or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from reparam._support import files
from reparam._support.files import (
    atomic_path,
    check_destination,
    kept,
    staged_folder,
    write_bytes,
    write_text,
)
from reparam.errors import InputError, ReparamError, VerificationError

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


@pytest.fixture
def bound_folder():
    """A folder of a user whom permissions bind; the administrator becomes one meanwhile."""
    if os.name != "posix":
        pytest.skip("needs POSIX permissions")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    user = os.geteuid()
    if user == 0:
        os.chown(folder, _NOBODY, -1)
        os.seteuid(_NOBODY)
    yield folder
    os.seteuid(user)
    folder.chmod(0o700)
    shutil.rmtree(folder)


_NOBODY = 65534
"""Number of a user that owns nothing."""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------ what is written


def test_the_file_has_the_content_and_nothing_else_is_left(tmp_path):
    target = tmp_path / "net.onnx"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"weights")
        assert not target.exists()
    assert target.read_bytes() == b"weights"
    assert names_in(tmp_path) == ["net.onnx"]


def test_the_temporary_path_has_the_name_of_the_file_and_does_not_exist(tmp_path):
    with atomic_path(tmp_path / "net.onnx") as temporary:
        assert temporary.name == "net.onnx"
        assert not temporary.exists()
        temporary.touch()


def test_a_relative_path_is_one_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("note.txt", "here")
    assert (tmp_path / "note.txt").read_text() == "here"


def test_the_former_file_stands_until_the_block_has_ended(tmp_path):
    target = tmp_path / "net.onnx"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_text_is_utf8_with_its_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "3\u00d73\r\n1\u00d71\n")
    assert (tmp_path / "a.txt").read_bytes() == b"3\xc3\x973\r\n1\xc3\x971\n"


def test_nothing_but_what_was_written_is_in_the_bytes(tmp_path):
    write_bytes(tmp_path / "a.bin", bytes(range(256)))
    assert (tmp_path / "a.bin").read_bytes() == bytes(range(256))


def test_files_beside_the_main_one_move_along(tmp_path):
    with atomic_path(tmp_path / "net.onnx") as temporary:
        temporary.write_text("graph")
        (temporary.parent / "net.onnx.data").write_text("weights")
    assert names_in(tmp_path) == ["net.onnx", "net.onnx.data"]


def test_the_main_file_moves_last(tmp_path, monkeypatch):
    order = []
    replace = type(tmp_path).replace
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda self, to: (order.append(self.name), replace(self, to))[1]
    )
    with staged_folder(tmp_path, main="a") as stage:
        for name in "bac":
            (stage / name).touch()
    assert order == ["b", "c", "a"]


# ------------------------------------------------------------------------------ permissions


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path, umask):
    former = os.umask(umask)
    try:
        with atomic_path(tmp_path / "ours") as temporary:
            temporary.touch()
            temporary.chmod(0o600)  # as safetensors and mkstemp do
        (tmp_path / "plain").touch()
    finally:
        os.umask(former)
    assert mode_of(tmp_path / "ours") == mode_of(tmp_path / "plain")


@posix
def test_a_replaced_file_keeps_its_permissions(tmp_path):
    target = tmp_path / "a"
    target.touch()
    target.chmod(0o640)
    write_text(target, "new")
    assert mode_of(target) == 0o640


@posix
def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "v1.onnx", tmp_path / "net.onnx"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


# ------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("error", [ValueError("a"), VerificationError("b"), KeyboardInterrupt()])
def test_an_error_in_the_block_passes_and_leaves_the_folder_as_it_was(tmp_path, error):
    target = tmp_path / "net.onnx"
    target.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["net.onnx"]


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    missing = tmp_path / "no" / "where"
    with pytest.raises(InputError, match="does not exist; create") as caught:
        write_text(missing / "a.txt", "")
    assert str(missing / "a.txt") in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_a_folder_of_that_name_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "net").mkdir()
    with pytest.raises(InputError, match="it is a folder"), atomic_path(tmp_path / "net"):
        pytest.fail("the block ran")


@posix
def test_a_device_is_refused_and_survives():
    with pytest.raises(InputError, match="not a plain file"):
        write_text(os.devnull, "")
    assert Path(os.devnull).is_char_device()


def test_a_read_only_folder_is_an_input_error(bound_folder):
    bound_folder.chmod(0o500)
    for check in (check_destination, lambda path: write_text(path, "")):
        with pytest.raises(InputError, match="not writable"):
            check(bound_folder / "a.txt")


@pytest.mark.parametrize("inner", ["", "inner"], ids=["itself", "one above it"])
def test_a_folder_that_may_not_be_entered_is_an_input_error(bound_folder, inner):
    (bound_folder / "inner").mkdir()
    bound_folder.chmod(0o600)
    for check in (check_destination, lambda path: write_text(path, "")):
        with pytest.raises(InputError, match="may not be entered"):
            check(bound_folder / inner / "a.txt")


def test_a_write_protected_file_is_left_alone(bound_folder):
    target = bound_folder / "a.txt"
    target.write_text("old")
    target.chmod(0o444)
    for check in (check_destination, lambda path: write_text(path, "new")):
        with pytest.raises(InputError, match="write-protected"):
            check(target)
    assert target.read_text() == "old"


def test_a_destination_that_can_be_written_is_left_as_it_is(tmp_path):
    check_destination(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("old")
    check_destination(tmp_path / "b.txt")
    assert names_in(tmp_path) == ["b.txt"]
    for wrong in (tmp_path, tmp_path / "nowhere" / "a.txt", tmp_path / "b.txt" / "a.txt"):
        with pytest.raises(InputError, match="cannot write"):
            check_destination(wrong)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "not writable"), (errno.ENOSPC, "no space")],
    ids=["read-only file system", "no permission", "full disk"],
)
def test_a_folder_that_takes_no_file_is_an_input_error(tmp_path, monkeypatch, number, words):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=words):
        write_text(tmp_path / "a.txt", "")


@posix
def test_a_file_beyond_the_limit_of_the_process_is_an_input_error(tmp_path):
    """The kernel's own refusal, in a process of its own, for the limit cannot be raised again."""
    program = """
        import pathlib, resource, signal, sys
        from reparam._support.files import write_bytes
        from reparam.errors import InputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(sys.argv[1], bytes(5000))
        except InputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "a.bin"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "a.bin: the file is larger than" in done.stdout
    assert names_in(tmp_path) == []


def test_a_full_disk_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no space is left"), atomic_path(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names_in(tmp_path) == []


def test_a_writer_with_errors_of_its_own_on_a_full_disk_is_an_input_error(tmp_path, monkeypatch):
    full = files.shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="no space is left") as caught, atomic_path(tmp_path / "a"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_writer_that_quotes_the_system_on_a_full_disk_is_an_input_error(tmp_path):
    quoting = RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")
    with pytest.raises(InputError, match="no space is left"), atomic_path(tmp_path / "a"):
        raise quoting


def test_a_writer_with_errors_of_its_own_and_room_on_the_disk_keeps_them(tmp_path):
    with pytest.raises(RuntimeError, match=r"^unsupported operator$"), atomic_path(tmp_path / "a"):
        raise RuntimeError("unsupported operator")


def test_another_operating_system_error_of_the_block_passes_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "weights.pth").read_bytes()


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path):
    target = tmp_path / "net.onnx"
    target.write_text("old")
    with pytest.raises(ReparamError, match="nothing was written"), atomic_path(target) as temporary:
        (temporary.parent / "net.bin").touch()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["net.onnx"]


def test_a_subfolder_is_refused_rather_than_dropped(tmp_path):
    with pytest.raises(ReparamError, match="'cache' beside it"), atomic_path(tmp_path / "a") as new:
        new.touch()
        (new.parent / "cache").mkdir()
    assert names_in(tmp_path) == []


def test_a_companion_that_meets_a_folder_stops_all(tmp_path):
    (tmp_path / "net.bin").mkdir()
    with (
        pytest.raises(InputError, match="it is a folder"),
        atomic_path(tmp_path / "net.xml") as new,
    ):
        new.touch()
        (new.parent / "net.bin").touch()
    assert names_in(tmp_path) == ["net.bin"]


@pytest.mark.parametrize("failing", ["a.bin", "b.bin", "net.xml"])
def test_files_that_moved_are_taken_back_when_a_later_one_cannot(tmp_path, monkeypatch, failing):
    (tmp_path / "a.bin").write_text("old a")
    (tmp_path / "net.xml").write_text("old net")
    replace = type(tmp_path).replace

    def refuse_one(self, target):
        if self.name == failing and self.read_text() == "new":
            raise PermissionError(errno.EACCES, "in use by another process")
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", refuse_one)
    with pytest.raises(InputError, match=r"net\.xml"), atomic_path(tmp_path / "net.xml") as new:
        for name in ("a.bin", "b.bin", "net.xml"):
            (new.parent / name).write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.bin": "old a",
        "net.xml": "old net",
    }


def package(path: Path, content: str) -> None:
    """A file of a format that is a folder."""
    (path / "Data").mkdir(parents=True)
    (path / "Manifest.json").write_text("{}", encoding="utf-8")
    (path / "Data" / content).write_text(content, encoding="utf-8")


@posix
def test_a_package_is_replaced_as_a_whole_and_readable_as_any_new_file(tmp_path):
    target = tmp_path / "net.mlpackage"
    for content in ("former", "latter"):
        with atomic_path(target) as temporary:
            package(temporary, content)
            (temporary / "Data" / content).chmod(stat.S_IRUSR)
    assert [p.name for p in (target / "Data").iterdir()] == ["latter"]
    assert [p.name for p in tmp_path.iterdir()] == ["net.mlpackage"]
    (tmp_path / "plain").touch()
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((target / "Data" / "latter").stat().st_mode) == plain
    assert stat.S_IMODE((target / "Data").stat().st_mode) & plain == plain
    with pytest.raises(RuntimeError), atomic_path(target):
        raise RuntimeError("the writer fails")
    assert [p.name for p in (target / "Data").iterdir()] == ["latter"]


def test_a_package_that_cannot_be_moved_leaves_the_former_one(tmp_path, monkeypatch):
    target = tmp_path / "net.mlpackage"
    package(target, "former")
    move = Path.replace

    def replace(path: Path, to: Path) -> Path:
        if (path / "Data" / "latter").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return move(path, to)

    with pytest.raises(InputError, match="cannot write"), atomic_path(target) as temporary:
        package(temporary, "latter")
        monkeypatch.setattr(Path, "replace", replace)
    assert [p.name for p in (target / "Data").iterdir()] == ["former"]


def test_a_folder_with_the_name_of_a_package_and_other_content_is_refused(tmp_path):
    (tmp_path / "net.mlpackage").mkdir()
    with pytest.raises(InputError, match="a folder"):
        check_destination(tmp_path / "net.mlpackage")


@pytest.mark.parametrize("link", ["itself", "symlink", "hardlink", "symlink to the output"])
def test_what_is_kept_is_not_written_over(link: str, tmp_path: Path) -> None:
    trained, out = tmp_path / "trained.pth", tmp_path / "out.pth"
    (out if link == "symlink to the output" else trained).write_bytes(b"trained")
    match link:
        case "itself":
            out = trained
        case "symlink":
            out.symlink_to(trained)
        case "hardlink":
            out.hardlink_to(trained)
        case _:
            trained.symlink_to(out)
    with kept([trained, tmp_path / "absent"]):
        with pytest.raises(InputError, match="is an input"):
            check_destination(out)
        with pytest.raises(InputError, match="is an input"):
            write_bytes(out, b"")
        with pytest.raises(InputError, match="is an input"), staged_folder(tmp_path) as stage:
            (stage / out.name).write_bytes(b"")  # as a file that a format writes beside its own
        write_bytes(tmp_path / "another.pth", b"")
    assert trained.read_bytes() == b"trained"
    write_bytes(out, b"now")


WRITER = """
import os, signal, sys
from reparam._support.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "a")], check=False)
    (left,) = tmp_path.glob(".reparam-*")
    with atomic_path(tmp_path / "b") as first:
        assert not left.exists()
        with atomic_path(tmp_path / "c") as second:
            assert first.parent.is_dir()
            second.write_bytes(b"c")
        first.write_bytes(b"b")
    assert {file.name for file in tmp_path.iterdir()} == {"b", "c"}
