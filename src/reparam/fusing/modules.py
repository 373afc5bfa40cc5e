"""What folds in a torch module: how regions are folded, written and compared there."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from reparam.algebra import AffineConv
from reparam.errors import VerificationError
from reparam.frontends.torch.running import Arguments
from reparam.frontends.torch.skeleton import shared_copy
from reparam.fusing.compare import compare_runs, compare_unread
from reparam.fusing.driver import FoldWarning, complete
from reparam.fusing.edit import CannotPlaceError, apply_regions
from reparam.fusing.fold import FoldedLayer, lowered
from reparam.fusing.module_fold import TracedDiscovery
from reparam.fusing.place import Parts
from reparam.fusing.regions import Region
from reparam.fusing.sites import ModuleSite, name_of

Folded = tuple[ModuleSite, FoldedLayer]


@dataclass(frozen=True, slots=True, eq=False)
class Probed:
    """An untraceable module that was identified from its responses."""

    path: str
    what: str
    op: AffineConv
    like: Tensor


class ModuleDiscovery(TracedDiscovery[nn.Module]):
    """Everything found in a module.

    Attributes:
        model: The user's model.
        readable: What is read: the model, or, if it needs its hooks, a copy whose copies keep them.
        probed: Modules that were identified from their responses.
        calls: By path of a traced module, arguments that it ran with: to run the result with.
        unread: Arguments that the model runs with, where it could not be traced as a whole.
        parts: Parts of the trace to rewrite, by path and inlined children, for one use each.
        needs_hooks: Whether the model does not run without its hooks.
        training: Modules outside of the chosen part that are in training mode.
        writes_weights: Whether a forward writes to parameters.
        frozen: Whether forwards around new layers are rewritten, though they call them as before.

    """

    def __init__(self, model: nn.Module, *, needs_hooks: bool = False) -> None:
        """Begin with nothing found."""
        super().__init__(name_of)
        self.model = model
        self.needs_hooks = needs_hooks
        self.readable = shared_copy(model, needs_hooks=True) if needs_hooks else model
        self.probed: list[Probed] = []
        self.calls: dict[str, Arguments] = {}
        self.unread: Arguments | None = None
        self.parts: Parts = {}
        self.training: frozenset[str] = frozenset()
        self.writes_weights = False
        self.frozen = False

    def records(self) -> Iterator[Region]:
        """The regions, and the modules that were probed."""
        yield from super().records()
        yield from map(_probed_region, self.probed)

    def write(self, folded: Sequence[Folded]) -> nn.Module:
        """Make the new model, without the blocks whose forward cannot be rewritten."""
        probed = {one.path: lowered(one.op, one.like) for one in self.probed}
        while True:
            try:
                fused = apply_regions(self.model, self.parts, folded, probed, frozen=self.frozen)
                break
            except CannotPlaceError as error:
                others = [found for found, _ in folded if not _touches(found, error.block)]
                together = set(complete(others, self.regions))
                kept = [pair for pair in folded if pair[0] in together]
                if len(kept) == len(folded):
                    raise
                folded = kept
                warnings.warn(
                    f"{error.block or self.whole} is left as it is: its forward cannot be "
                    f"rewritten ({error})",
                    FoldWarning,
                    stacklevel=4,
                )
        return fused

    def made(self, folded: Sequence[Folded]) -> nn.Module:
        """Write the new model and compare it with the old one.

        Code may look at what its layers are. Then it is written as it went in the trace; where that
        cannot be, or where code that could not be read uses what is in a module in another way,
        what is folded there is left.

        Raises:
            VerificationError: It computes something else.

        """
        try:
            return super().made(folded)
        except VerificationError:
            self.frozen = True
        try:
            return super().made(folded)
        except VerificationError:
            by_block = defaultdict(list)
            for found, layer in folded:
                by_block[found.lifted.trace.path, found.reach].append((found, layer))
            sound = self._sound(list(by_block.values()))
            together = set(complete([found for found, _ in sound], self.regions))
            kept = [pair for pair in sound if pair[0] in together]
            if not kept and not any(found.lifted.trace.path for found, _ in folded):
                raise  # all code was read: its edit is wrong
        for path in sorted({found.reach for found, _ in folded if found not in together}):
            warnings.warn(
                f"{path or self.whole} is left as it is: code uses what is in it, so that the "
                f"model would compute something else with it folded",
                FoldWarning,
                stacklevel=4,
            )
        return super().made(kept)

    def _sound(self, blocks: list[list[Folded]]) -> list[Folded]:
        """What folds of some blocks so that the model computes the same, found by halves."""
        every = [pair for block in blocks for pair in block]
        try:
            super().made(every)
        except VerificationError:
            half = len(blocks) // 2
            return self._sound(blocks[:half]) + self._sound(blocks[half:]) if half else []
        return every

    def checked(self, fused: nn.Module, *, edited: bool) -> nn.Module:
        """Run every module that was traced and its successor side by side, in eval mode."""
        if edited or self.probed:
            writes = self.writes_weights or self.unread is not None
            compare_runs(
                self.model, fused, self.calls, needs_hooks=self.needs_hooks, writes_weights=writes
            )
            if self.unread is not None:
                compare_unread(type(self.model).__name__, self.model, fused, self.unread)
        for name, module in fused.named_modules():
            module.training = module.training or name in self.training
        return fused


def _touches(found: ModuleSite, block: str) -> bool:
    """Whether a region has operations in a module."""
    owners = {found.block, *(found.key_of(node).owner for node in found.region.nodes)}
    return any(_is_within(owner, block) for owner in owners)


def _is_within(path: str, block: str) -> bool:
    return block in {"", path} or path.startswith(f"{block}.")


def _probed_region(probed: Probed) -> Region:
    geometry = probed.op.geometry
    where = probed.path or "the model"
    return Region(
        where=where,
        what=f"{probed.what} (probed, not traced)",
        into=str(geometry),
        layers_before=1,
        macs_before=0.0,
        macs_after=0.0,
        stored_before=geometry.parameters,
        stored_after=geometry.parameters,
        parts=(where,),
        probed=True,
        bytes_each=probed.like.element_size(),
    )
