"""From the names in a file to the names in a model: which belongs to which, and what is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.checkpoints.layouts import FUSED, LAYOUTS, PLAIN, form_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from torch import Tensor

_MOST_PREFIXES = 4
_BOOKKEEPING = ("num_batches_tracked", "n_averaged")  # counters, of no use to the function


@dataclass(frozen=True)
class NameMap:
    """One way to understand the names in a file.

    Attributes:
        layout: Whose names they are.
        names: Our name for each, and the name in the file.
        translated: How many of them the layout knows.
    """

    layout: str
    names: Mapping[str, str]
    translated: int = 0


@dataclass(frozen=True)
class Mismatch:
    """A tensor that is in the file and in the model and does not fit.

    Attributes:
        name: Its name in the model.
        source: Its name in the file.
        found: Its shape in the file; or its dtype, if that is what does not fit.
        needed: The same in the model.
    """

    name: str
    source: str
    found: tuple[int, ...] | torch.dtype
    needed: tuple[int, ...] | torch.dtype

    def __str__(self) -> str:
        return f"{self.name} is {self.found} in the file and {self.needed} in the model"


@dataclass(frozen=True)
class Match:
    """What fits, and what does not.

    Attributes:
        fits: Name in the model, and name in the file, of what fits.
        missing: Names in the model that the file lacks.
        unexpected: Names in the file that the model lacks.
        mismatched: What has another shape.
    """

    fits: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]


def read_names(in_file: Iterable[str], in_model: Iterable[str]) -> NameMap:
    """Return the map of the names in a file that finds the most of them in the model.

    Tried are all layouts, with and without the prefixes that wrappers leave (``module.``,
    ``model.``, ``net.module.`` ...). Of two that find as many, the one counts that knows more of
    the file's names, and then the one that changes less.
    """
    known = model_names(in_model).keys()
    name_maps = [name_map for view in _views(in_file) for name_map in _name_maps(view)]
    return max(name_maps, key=lambda r: (len(known & r.names.keys()), r.translated))


def compare(
    name_map: NameMap, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> Match:
    """Compare names and shapes. ``targets`` are the model's tensors, tied ones being one object."""
    actual = model_names(targets)
    fits: dict[str, str] = {}
    mismatched, unexpected = [], []
    for ours, source in name_map.names.items():
        name = actual.get(ours)
        if name is None:
            unexpected.append(source)
        elif problem := _problem(name, source, tensors[source], targets[name]):
            mismatched.append(problem)
        else:
            fits[name] = source
    # A file need not repeat a tensor that the model has under two names.
    held = {id(targets[name]) for name in (*fits, *(m.name for m in mismatched))}
    missing = [name for name, target in targets.items() if id(target) not in held]
    if missing and unexpected and not mismatched:
        paired = _paired_in_blocks(missing, unexpected, tensors, targets)
        fits |= paired
        missing = [name for name in missing if name not in paired]
        unexpected = [name for name in unexpected if name not in paired.values()]
    return Match(
        fits=fits,
        missing=tuple(name for name in missing if not _is_counter(name)),
        unexpected=tuple(name for name in unexpected if not _is_counter(name)),
        mismatched=tuple(mismatched),
    )


def _paired_in_blocks(
    missing: Iterable[str],
    unexpected: Iterable[str],
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
) -> dict[str, str]:
    """Names of an author's deploy form, each with the one in a file of a net that was fused here.

    The author's class gives the folded convolution a name of its own (``rbr_reparam``,
    ``reparam_conv``), and ours stands where a branch stood (``rbr_dense.conv``): in the same block,
    with the same shape. Either all of them are told apart by that, or none is taken.
    """
    pairs: dict[str, str] = {}
    left = [name for name in unexpected if not _is_counter(name)]
    wanted = [name for name in missing if not _is_counter(name)]
    for name in wanted:
        parts = name.split(".")
        block = ".".join([*parts[:-2], ""])
        fitting = [
            source
            for source in left
            if normal_name(source).startswith(block)
            and source.rpartition(".")[2] == parts[-1]
            and _problem(name, source, tensors[source], targets[name]) is None
        ]
        if len(fitting) != 1 or not block:
            return {}
        pairs[name] = fitting[0]
    return pairs if set(pairs.values()) == set(left) and len(pairs) == len(left) else {}


def model_names(in_model: Iterable[str]) -> dict[str, str]:
    """Return our names for the tensors of a model, each with its name in the model.

    A network that was fused is given the names of its deploy form, so that it takes the same files.
    """
    plain = {normal_name(name): name for name in in_model}
    if form_of(plain) != "deploy":
        return plain
    fused = {FUSED.translate(ours) or ours: name for ours, name in plain.items()}
    return fused if len(fused) == len(plain) else plain


def normal_name(name: str) -> str:
    """Return a name without what ``torch.compile`` puts into it, at any depth.

    >>> normal_name("_orig_mod.stem._orig_mod.weight")
    'stem.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _views(in_file: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the names without 0, 1, 2, ... leading parts, each with the name in the file.

    A part is taken off where most names begin with it; the names that do not are kept as they are.
    """
    view = {normal_name(name): name for name in in_file}
    for _ in range(_MOST_PREFIXES):
        yield view
        firsts = Counter(name.partition(".")[0] for name in view if "." in name)
        if not firsts:
            return
        prefix = f"{firsts.most_common(1)[0][0]}."
        shorter = {name.removeprefix(prefix): source for name, source in view.items()}
        if len(shorter) < len(view):  # two names would become one
            return
        view = shorter


def _name_maps(view: Mapping[str, str]) -> Iterator[NameMap]:
    """Yield the names as they are, and as each of the layouts understands them."""
    yield NameMap(PLAIN, view)
    for layout in LAYOUTS:
        names = {}
        translated = 0
        for theirs, source in view.items():
            ours = layout.translate(theirs)
            translated += ours is not None
            names[theirs if ours is None else ours] = source
        if len(names) == len(view):
            yield NameMap(layout.name, names, translated)


def _problem(name: str, source: str, found: Tensor, needed: Tensor) -> Mismatch | None:
    if found.shape != needed.shape:
        return Mismatch(name, source, tuple(found.shape), tuple(needed.shape))
    if _kind(found.dtype) != _kind(needed.dtype):
        return Mismatch(name, source, found.dtype, needed.dtype)
    return None


def _kind(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _BOOKKEEPING
