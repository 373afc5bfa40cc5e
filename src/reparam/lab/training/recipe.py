"""Recipes: all that decides how a model is trained, as frozen records and small TOML files."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from reparam._support.records import decode
from reparam.errors import InputError
from reparam.lab.data import Augment

NoDecay = Literal["bias", "norm", "conv_norm"]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer.

    Attributes:
        kind: ``"sgd"`` or ``"adamw"``.
        learning_rate: Highest learning rate, for the recipe's batch size.
        momentum: Of SGD; ignored by AdamW.
        nesterov: Nesterov's momentum, SGD only.
        betas: Of AdamW; ignored by SGD.
        weight_decay: Per step, added to the gradient (SGD) or taken off the weight (AdamW).
        no_decay: What does not decay. ``"bias"``: every bias; ``"norm"``: every normalisation
            weight; ``"conv_norm"``: the weight of a normalisation that directly follows a
            convolution, so that the normalisation of an identity branch still decays (RepVGG,
            official training code).
        norm_bias_rate: Learning rate of the normalisations' biases over that of all else (Jordan
            2024, section 3.4).
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    no_decay: tuple[NoDecay, ...] = ()
    norm_bias_rate: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time: a linear warm-up, then a cosine or a straight line down.

    Attributes:
        kind: Shape after the warm-up.
        warmup_share: Length of the warm-up from nothing, as a share of the run.
        final_share: The last learning rate as a share of the highest.
    """

    kind: Literal["cosine", "linear"] = "cosine"
    warmup_share: float = 0.0
    final_share: float = 0.0

    def factor(self, step: int, steps: int, warmup_steps: int) -> float:
        """Return the share of the highest learning rate at one of `steps` optimizer steps.

        Example:
            >>> schedule = Schedule(final_share=0.0)
            >>> [round(schedule.factor(step, 5, 1), 3) for step in range(5)]
            [1.0, 1.0, 0.75, 0.25, 0.0]
        """
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, steps - warmup_steps - 1)
        remaining = (
            1 - progress if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        )
        return self.final_share + (1 - self.final_share) * remaining


@dataclass(frozen=True)
class Ema:
    """An exponential moving average of the weights, evaluated and kept in place of the last ones.

    Attributes:
        decay: Share of the average that each step keeps; 0 for no average.
        every: Optimizer steps between two updates.
    """

    decay: float = 0.0
    every: int = 1


@dataclass(frozen=True)
class SmallFirst:
    """Smaller images at the beginning of a run, which cost less and teach the coarse features.

    Attributes:
        size: Longer side of the images in pixels; 0 for none but the full ones.
        share: Share of the run that sees them.
    """

    size: int = 0
    share: float = 0.0

    def now(self, step: int, steps: int) -> bool:
        """Whether images are small at one of `steps` optimizer steps.

        Example:
            >>> small = SmallFirst(size=24, share=0.5)
            >>> [small.now(step, 4) for step in range(4)]
            [True, True, False, False]
        """
        return self.size > 0 and step < round(self.share * steps)


_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda n: n >= 1, "at least 1"),
    "batch_size": (lambda n: n >= 1, "at least 1"),
    "accumulate": (lambda n: n >= 1, "at least 1"),
    "label_smoothing": (lambda share: 0 <= share < 1, "in [0, 1)"),
    "optimizer.learning_rate": (lambda rate: rate > 0, "above 0"),
    "optimizer.norm_bias_rate": (lambda rate: rate > 0, "above 0"),
    "ema.decay": (lambda share: 0 <= share < 1, "in [0, 1)"),
    "ema.every": (lambda n: n >= 1, "at least 1"),
    "schedule.warmup_share": (lambda share: 0 <= share < 1, "in [0, 1)"),
    "small_first.size": (lambda size: size >= 0, "0 or more pixels"),
    "small_first.share": (lambda share: 0 <= share <= 1, "in [0, 1]"),
}
"""What a training can start from, and how it is said."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        summary: One line for a person.
        model: The MODEL that the recipe was made for, which ``reparam train`` takes where none is
            named; nothing else depends on it.
        epochs: Times that every training image is seen.
        batch_size: Images of one optimizer step, over all processes and accumulated parts.
        accumulate: Parts that each process splits its share of a step into, to save memory.
        loss: ``"cross_entropy"``, or ``"binary"``: a yes or no for each class by itself, averaged
            over the classes (Wightman et al., arXiv 2110.00476, section 2).
        label_smoothing: Share of the target spread evenly over all classes.
        precision: Arithmetic of the forward and backward pass (autocast); weights stay float32.
            ``"auto"``: bf16 where the device has instructions for it, else fp32; a resumed run
            keeps what it began in.
        gradient_clip: Largest norm of a step's gradient; 0 for no limit.
        kernel_decay: RepVGG's L2 on the *equivalent* kernel of each multi-branch block, which then
            replaces weight decay on that block's convolutions; 0 to decay them one by one.
        optimizer: See :class:`Optimizer`.
        schedule: See :class:`Schedule`.
        augment: See :class:`reparam.lab.data.Augment`.
        ema: See :class:`Ema`.
        small_first: See :class:`SmallFirst`.
    """

    summary: str = ""
    model: str = ""
    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    label_smoothing: float = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    gradient_clip: float = 0.0
    kernel_decay: float = 0.0
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)
    ema: Ema = field(default_factory=Ema)
    small_first: SmallFirst = field(default_factory=SmallFirst)

    def __post_init__(self) -> None:
        for name, (fits, needed) in _RANGES.items():
            value = attrgetter(name)(self)
            if not fits(value):
                raise InputError(f"{name} is {value!r}; it must be {needed}")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain values, which :meth:`from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """Build a recipe from nested plain values.

        Raises:
            InputError: A key is unknown (the nearest known one is named), or a value is of the
                wrong kind or size.
        """
        return decode(cls, values, where, strict=True)

    def override(self, **values: Any) -> Recipe:
        """Return the recipe with some values replaced; dots become double underscores.

        Example:
            >>> load_recipe("digits").override(epochs=2, optimizer__learning_rate=0.05).epochs
            2
        """
        nested = self.to_dict()
        for name, value in values.items():
            *path, last = name.split("__")
            target = nested
            for part in path:
                target = target.setdefault(part, {})
            target[last] = value
        return self.from_dict(nested, "the recipe with " + ", ".join(values))


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that the package brings."""
    folder = resources.files("reparam.lab.training") / "recipes"
    files = (Path(entry.name) for entry in folder.iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".toml"))


def load_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return a recipe by name, from a TOML file, or as it is.

    Raises:
        InputError: There is no such recipe, or the file does not describe one.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe) in recipe_names():
        entry = resources.files("reparam.lab.training") / "recipes" / f"{recipe}.toml"
        return _parse(entry.read_text(encoding="utf-8"), f"recipe {recipe!r}")
    path = Path(recipe)
    if not path.is_file():
        known = recipe_names()
        close = difflib.get_close_matches(str(recipe), known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(
            f"there is no recipe {str(recipe)!r}{hint}: give one of {', '.join(known)}, or "
            "the path of a TOML file"
        )
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(text: str, where: str) -> Recipe:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not TOML: {error}") from error
    return Recipe.from_dict(values, where)
