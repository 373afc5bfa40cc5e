"""What was asked for, checked before any model is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reparam._support.optional import available
from reparam.cli.groups import command, option, words
from reparam.cli.options import Inputs, ModelOptions, NamedInputOptions
from reparam.deploy.engines import Settings, get_engine
from reparam.errors import InputError

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
        about: what is said of every model that is built; weights are of the one there is.
        inputs: shape of the example input.
        forms: of ``"train"`` and ``"deploy"``.
        engines: names of engines.
        precisions: ``"fp32"``, ``"bf16"``.
        batches: inputs a call.
        threads: CPU threads of a call; None is each engine's default.
        rounds: interleaved rounds, at most.
        seconds: time for all of it, or None.
        figure1: whether to measure each net at the image size of its published accuracy, and to
            count the memory of blocks with more branches and with fewer, too.
    """

    models: tuple[str, ...]
    about: ModelOptions
    inputs: Inputs
    forms: tuple[str, ...]
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    threads: tuple[int | None, ...]
    rounds: int
    seconds: float | None
    figure1: bool

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
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
        if self.about.weights is not None and len(self.models) > 1:
            raise InputError("--weights are for one MODEL, and there are several; leave one")

    @property
    def title(self) -> str:
        """What the page is called."""
        return _FIGURE1_TITLE if self.figure1 else f"Latency of {', '.join(self.models)}"

    def as_command(self) -> str:
        """The command line that measures this again."""
        lists = {
            "--forms": self.forms, "--engines": self.engines, "--precisions": self.precisions,
            "--batches": self.batches,
        }  # fmt: skip
        lists |= {} if self.threads == (None,) else {"--threads": self.threads}
        last = [] if self.seconds is None else ["--seconds", f"{self.seconds:g}"]
        return command(
            "bench", *self.models, *words(self.about), *(["--figure1"] if self.figure1 else []),
            *(word for name, values in lists.items() for word in (name, _joined(values))),
            *self.inputs.words(), "--rounds", str(self.rounds), *last,
        )  # fmt: skip


def _joined(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What ``reparam bench`` measures, and how."""

    engines: str | None = option("eager,onnxruntime,openvino as far as installed; others.", "A,B")
    precisions: str = option("fp32, bf16, or both.", "A,B", default="fp32")
    forms: str | None = option("train, deploy, or both (the default).", "A,B")
    batches: str = option("Inputs a call.", "N,M", default="1")
    threads: str | None = option("CPU threads; each engine's default if left.", "N,M")
    rounds: int | None = option("Interleaved rounds, at most.", "N", min=1)
    seconds: float | None = option("Fit the rounds into this time.", "S", min=1)
    figure1: bool = option(
        "RepVGG, MobileOne and others against ResNets, deploy form, with a page; 10 minutes.",
        default=False,
    )

    def request(
        self,
        models: Sequence[str] | None,
        about: ModelOptions,
        given: NamedInputOptions,
        note: Callable[[str], None],
    ) -> Request:
        """Make a measurement of it, and note what is left out of it."""
        if self.figure1 and not models:
            models = _usable(
                FIGURE1_MODELS,
                lambda name: ":" not in name or available(name.partition(":")[0]),
                "left out: {}; pip install 'reparam[all]' brings what they need",
                note,
            )
        if self.engines is not None:
            engines = names(self.engines, "--engines")
        else:
            engines = _usable(
                _USUAL_ENGINES,
                lambda name: get_engine(name).available(),
                "not installed: {}; pip install 'reparam[deploy]' brings them",
                note,
            )
        seconds = self.seconds or (_FIGURE1_SECONDS if self.figure1 else None)
        return Request(
            models=tuple(models or ()),
            about=about,
            inputs=given.inputs,
            forms=names(self.forms or ("deploy" if self.figure1 else "train,deploy"), "--forms"),
            engines=engines,
            precisions=names(self.precisions, "--precisions"),
            batches=numbers(self.batches, "--batches"),
            threads=(None,) if self.threads is None else numbers(self.threads, "--threads"),
            rounds=self.rounds or (_ROUNDS if seconds is None else _MOST_ROUNDS),
            seconds=seconds,
            figure1=self.figure1,
        )


def _usable(
    wanted: Sequence[str], usable: Callable[[str], bool], told: str, note: Callable[[str], None]
) -> tuple[str, ...]:
    """Those of some names that can be used here; the others are noted."""
    have = tuple(filter(usable, wanted))
    if len(have) < len(wanted):
        note(f"note: {told.format(', '.join(name for name in wanted if name not in have))}")
    return have


def names(text: str, option: str) -> tuple[str, ...]:
    """Read a list with commas.

    >>> names("eager, onnxruntime", "--engines")
    ('eager', 'onnxruntime')
    """
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise InputError(f"{option} {text!r} names nothing; give names with commas between them")
    return found


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read a list of whole numbers with commas.

    >>> numbers("1,16", "--batches")
    (1, 16)
    """
    try:
        return tuple(int(word) for word in names(text, option))
    except ValueError:
        raise InputError(
            f"{option} {text!r} is no list of whole numbers; give something like 1,16"
        ) from None
