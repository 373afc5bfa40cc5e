"""A command that a signal stops ends with the signal's exit code, and leaves nothing half-done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries' own, where they are cut short

MODEL = ["{tiny}:classifier", "--num-classes", "10", "--input-size", "8"]
FEW = ["--data", "digits", "--evaluate", "32"]
TRAIN = ["train", "--data", "digits", "-m", "{tiny}:classifier", "--epochs", "1", "-o", "run"]
STAGED = ".reparam-*"
"""What a file is written in until it is whole."""

LINES = {
    "fuse": ["fuse", *MODEL, "-o", "out.onnx"],
    "fuse to .pt2": ["fuse", *MODEL, "-o", "out.pt2"],
    "prune": [
        "prune",
        *MODEL,
        *FEW,
        "-w",
        "fused.safetensors",
        "--images",
        "32",
        "--macs",
        "0.5",
        "--multiple",
        "1",
        "-o",
        "out.onnx",
    ],
    "quantize": [
        "quantize",
        *MODEL,
        *FEW,
        "--samples",
        "32",
        "-w",
        "fused.safetensors",
        "-o",
        "out.onnx",
    ],
    "train": TRAIN,
    "the export of train": TRAIN,
    "bench": ["bench", *MODEL, "--engines", "eager", "--seconds", "600", "-o", "out.json"],
}
WHEN = dict.fromkeys(LINES, STAGED) | {
    "train": f"run/{STAGED}",
    "the export of train": "run/deploy.safetensors",
    "bench": "built",
}


@pytest.fixture
def harmless() -> Iterator[None]:
    """Let no signal that comes too late end the tests themselves."""
    former = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("harmless")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("command", LINES)
def test_a_command_that_is_stopped(
    command: str,
    number: signal.Signals,
    tiny: str,
    folder: Path,
    reparam_command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    line = [part.format(tiny=tiny) for part in LINES[command]]
    if command in {"prune", "quantize"}:
        prepared = [part.format(tiny=tiny) for part in ("fuse", *MODEL, "-o", "fused.safetensors")]
        assert reparam_command(*prepared).code == 0
    if command == "bench":
        module = folder / f"{tiny}.py"
        text = "\n\nfrom pathlib import Path\nPath('built').touch()\n"
        module.write_text(module.read_text(encoding="utf-8") + text, encoding="utf-8")
    over = threading.Event()

    def stop() -> None:
        while not over.is_set() and not [*folder.glob(WHEN[command])]:
            over.wait(0.002)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=stop)
    watcher.start()
    try:
        ran = reparam_command(*line)
    finally:
        over.set()
        watcher.join()
    assert ran.code == 128 + number, ran.err
    assert "Traceback" not in ran.err
    assert not [*folder.rglob(STAGED)]
    assert not [*folder.rglob("out.*")]
    assert not [*temporary.glob("*reparam*")]  # torch and the engines have folders of their own


SWALLOWS = """
import os, signal

def factory():
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException as error:
        raise RuntimeError("could not convert the model") from error
"""


@pytest.mark.usefixtures("harmless")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_library_that_makes_an_error_of_the_signal(
    number: signal.Signals, folder: Path, reparam_command
) -> None:
    module = f"swallows_{number.name}_{abs(hash(folder)):x}"
    (folder / f"{module}.py").write_text(SWALLOWS.format(name=number.name), encoding="utf-8")
    ran = reparam_command("plan", f"{module}:factory")
    assert ran.code == 128 + number
    assert "could not convert" not in ran.err
