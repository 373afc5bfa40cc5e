"""What was asked for, checked before any model is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from reparam._support.optional import available
from reparam.cli.options import ModelOptions, NamedInputOptions
from reparam.cli.targets import Checkpoint, Inputs, Target, command
from reparam.deploy.engines import Settings, get_engine
from reparam.errors import InputError

__all__ = [
    "FIGURE1_MODELS",
    "FORMS",
    "MeasureOptions",
    "Request",
    "figure1_models",
    "numbers",
    "usable_engines",
    "words",
]

FORMS = ("train", "deploy")

FIGURE1_MODELS = (
    "repvgg_a0",
    "repvgg_a1",
    "repvgg_a2",
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "timm:fastvit_t8",
    "timm:repvit_m0_9",
    "torchvision:resnet18",
    "torchvision:resnet34",
    "torchvision:resnet50",
    "torchvision:resnet101",
    "torchvision:regnet_y_800mf",
    "torchvision:efficientnet_b0",
    "torchvision:mobilenet_v3_large",
)
"""Nets of the first figure of RepVGG (arXiv 2101.03697), the families that came after it, and what
they compete with, as far as a small machine runs them in time."""

_ROUNDS, _MOST_ROUNDS = 15, 60
_FIGURE1_SECONDS = 480.0
_FIGURE1_TITLE = "Accuracy against latency: re-parameterized nets and others on this machine"

_USUAL_ENGINES = ("eager", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Request:
    """A measurement to make: every model in every form, engine, precision, batch and threads.

    Attributes:
        models: as on the command line.
        forms: of ``"train"`` and ``"deploy"``.
        engines: names of engines.
        precisions: ``"fp32"``, ``"bf16"``.
        batches: inputs a call.
        threads: CPU threads of a call; None is each engine's default.
        inputs: shape of the example input.
        checkpoint: weights of the one model there is, or None.
        num_classes: classes of every model that is built, where not its default.
        rounds: interleaved rounds, at most.
        seconds: time for all of it, or None.
        title: what the page is called.
        figure1: whether to measure each net at the image size of its published accuracy, and to
            count the memory of blocks with more branches and with fewer, too.
    """

    models: tuple[str, ...]
    forms: tuple[str, ...]
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int | None, ...]
    inputs: Inputs
    checkpoint: Checkpoint | None
    num_classes: int | None
    rounds: int
    seconds: float | None
    title: str
    figure1: bool

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            InputError: a value is unknown or out of range.
            MissingExtraError: an engine is not installed.
        """
        if not self.models:
            raise InputError(
                "there is nothing to measure; give one or more MODEL, or --figure1 for "
                "re-parameterized nets against others"
            )
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown:
            raise InputError(f"{unknown[0]!r} is no form; --forms takes {','.join(FORMS)}")
        for engine in self.engines:
            get_engine(engine).require()
        for precision in self.precisions:
            for threads in self.threads:
                Settings(threads, precision)
        if min(self.batches) < 1:
            raise InputError(f"--batches has {min(self.batches)}; every batch is at least 1")
        if self.seconds is not None and not math.isfinite(self.seconds):
            raise InputError(f"--seconds is {self.seconds}; leave it out to run every round")
        if self.checkpoint is not None and len(self.models) > 1:
            raise InputError("--weights are for one MODEL, and there are several; leave one")

    def target(self, name: str) -> Target:
        """What one of the models stands for."""
        return Target(name, self.checkpoint, self.num_classes)

    def as_command(self) -> str:
        """The command line that measures this again."""
        options = self.target("").words()[1:]
        parts = ["bench", *self.models, *options, *(["--figure1"] if self.figure1 else [])]
        parts += ["--forms", ",".join(self.forms)]
        parts += ["--engines", ",".join(self.engines), "--precisions", ",".join(self.precisions)]
        parts += ["--batches", ",".join(map(str, self.batches))]
        if self.threads != (None,):
            parts += ["--threads", ",".join(map(str, self.threads))]
        parts += [*self.inputs.words(), "--rounds", str(self.rounds)]
        return command(
            *parts, *([] if self.seconds is None else ["--seconds", f"{self.seconds:g}"])
        )


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What ``reparam bench`` measures, and how."""

    engines: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="eager,onnxruntime,openvino as far as installed; others."),
    ] = None
    precisions: Annotated[str, typer.Option(metavar="A,B", help="fp32, bf16, or both.")] = "fp32"
    forms: Annotated[
        str | None, typer.Option(metavar="A,B", help="train, deploy, or both (the default).")
    ] = None
    batches: Annotated[str, typer.Option(metavar="N,M", help="Inputs a call.")] = "1"
    threads: Annotated[
        str | None, typer.Option(metavar="N,M", help="CPU threads; each engine's default if left.")
    ] = None
    rounds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Interleaved rounds, at most.")
    ] = None
    seconds: Annotated[
        float | None, typer.Option(metavar="S", min=1, help="Fit the rounds into this time.")
    ] = None
    figure1: Annotated[
        bool,
        typer.Option(
            "--figure1",
            help="RepVGG, MobileOne and others against ResNets, deploy form, with a page; "
            "10 minutes.",
        ),
    ] = False

    def request(
        self,
        models: Sequence[str] | None,
        about: ModelOptions,
        given: NamedInputOptions,
        note: Callable[[str], None],
    ) -> Request:
        """Make a measurement of it, and note what is left out of it.

        Raises:
            InputError: a value is unknown or out of range.
            MissingExtraError: an engine is not installed.
        """
        installed, missing = usable_engines()
        drawn, left_out = figure1_models() if self.figure1 and not models else (models or (), "")
        for told in (missing if self.engines is None else "", left_out):
            if told:
                note(f"note: {told}")
        seconds = self.seconds or (_FIGURE1_SECONDS if self.figure1 else None)
        return Request(
            models=tuple(drawn),
            forms=words(self.forms or ("deploy" if self.figure1 else "train,deploy"), "--forms"),
            engines=installed if self.engines is None else words(self.engines, "--engines"),
            precisions=words(self.precisions, "--precisions"),
            batches=numbers(self.batches, "--batches"),
            threads=(None,) if self.threads is None else numbers(self.threads, "--threads"),
            inputs=given.inputs,
            checkpoint=about.checkpoint,
            num_classes=about.num_classes,
            rounds=self.rounds or (_ROUNDS if seconds is None else _MOST_ROUNDS),
            seconds=seconds,
            title=_FIGURE1_TITLE if self.figure1 else "",
            figure1=self.figure1,
        )


def words(text: str, option: str) -> tuple[str, ...]:
    """Read a list with commas.

    >>> words("eager, onnxruntime", "--engines")
    ('eager', 'onnxruntime')

    Raises:
        InputError: there is nothing in it.
    """
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise InputError(f"{option} {text!r} names nothing; give names with commas between them")
    return found


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read a list of whole numbers with commas.

    >>> numbers("1,16", "--batches")
    (1, 16)

    Raises:
        InputError: it is none.
    """
    try:
        return tuple(int(word) for word in words(text, option))
    except ValueError:
        raise InputError(
            f"{option} {text!r} is no list of whole numbers; give something like 1,16"
        ) from None


def figure1_models() -> tuple[tuple[str, ...], str]:
    """The nets of the figure that can be built here, and a sentence about those that cannot."""
    have = tuple(
        name for name in FIGURE1_MODELS if ":" not in name or available(name.partition(":")[0])
    )
    lack = [name for name in FIGURE1_MODELS if name not in have]
    hint = "pip install 'reparam[all]'"
    return have, f"left out: {', '.join(lack)}; {hint} brings what they need" if lack else ""


def usable_engines(wanted: Sequence[str] = _USUAL_ENGINES) -> tuple[tuple[str, ...], str]:
    """Those of the usual engines that are installed, and a sentence about those that are not."""
    have = tuple(name for name in wanted if get_engine(name).available())
    lack = [name for name in wanted if name not in have]
    hint = "pip install 'reparam[deploy]'"
    return have, f"not installed: {', '.join(lack)}; {hint} brings them" if lack else ""
