"""One author writes one forward, statement by statement, and keeps what runs."""

from __future__ import annotations

import itertools
import linecache
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from zoo import randomise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Author", "Statement", "draw_module"]

Statement: TypeAlias = "Callable[[Author, str], None]"
"""Writes what follows from the value of a name; one that does not fit there writes nothing."""

_files = itertools.count()


def draw_module(
    draw: st.DrawFn,
    shapes: tuple[tuple[int, ...], ...],
    kinds: Sequence[Statement],
    max_steps: int,
    depth: int,
) -> tuple[nn.Module, str]:
    author = Author(draw, shapes, depth, kinds)
    for _ in range(draw(st.integers(1, max_steps))):
        author.write_one()
    return author.finish()


class _Block(nn.Module):
    """Base of every generated module; the forward is added from source."""


@dataclass(eq=False)
class Author:
    """Writes one forward. ``names`` are the values so far; ``runs`` hold them at both sizes."""

    draw: st.DrawFn
    shapes: tuple[tuple[int, ...], ...]
    depth: int
    kinds: Sequence[Statement]
    module: nn.Module = field(init=False)
    lines: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: ["x"])
    runs: list[dict[str, Any]] = field(init=False)
    inner: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = _Block().double().eval()
        shared = {"self": self.module, "torch": torch, "F": F, "k": 2}
        self.runs = [
            {**shared, "x": torch.randn(s, generator=torch.Generator().manual_seed(9)).double()}
            for s in self.shapes
        ]

    # ---------------------------------------------------------------- writing

    def write_one(self) -> None:
        """Append one statement of a drawn kind; a kind that does not fit here writes nothing."""
        write = self.draw(st.sampled_from(self.kinds))
        write(self, self.pick())

    def pick(self) -> str:
        """Choose a value, the newest more often than not, so that little drawn is dead code."""
        newest = self.names[-1]
        return self.draw(st.sampled_from([*[newest] * len(self.names), *self.names[-2::-1]]))

    def value(self, name: str) -> torch.Tensor:
        return self.runs[0][name]

    def assign(self, expression: str) -> str | None:
        """Write ``vN = expression`` if it runs at both sizes; return the new name."""
        name = f"v{len(self.lines)}"
        if not self._runs(f"{name} = {expression}"):
            return None
        if not usable(*(run[name] for run in self.runs)):
            self._take_back(name)
            return None
        self.names.append(name)
        return name

    def state(self, statement: str) -> None:
        """Write a statement that changes a value in place, if it runs at both sizes."""
        self._runs(statement)

    def _runs(self, statement: str) -> bool:
        """Run a statement at both sizes; first on copies, since a failure may leave traces."""
        copies = [
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in run.items()}
            for run in self.runs
        ]
        code = compile(statement, "<statement>", "exec")
        try:
            with torch.no_grad():
                for run in [*copies, *self.runs]:
                    exec(code, {}, run)  # noqa: S102 (own source)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        self.lines.append(statement)
        return True

    def _take_back(self, name: str) -> None:
        self.lines.pop()
        for run in self.runs:
            run.pop(name)

    # ---------------------------------------------------------------- modules

    def add(self, part: nn.Module) -> str:
        """Register a submodule with random numbers; return the expression that names it."""
        name = f"m{len(self.module._modules)}"
        randomise(part.double(), seed=len(self.module._modules) + 17 * self.depth)
        self.module.add_module(name, part)
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        name = f"p{len(self.module._parameters)}"
        rng = torch.Generator().manual_seed(len(self.module._parameters))
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        values = scale * torch.randn(shape, generator=rng, dtype=torch.float64)
        self.module.register_parameter(name, nn.Parameter(values))
        return f"self.{name}"

    # ---------------------------------------------------------------- the end

    def finish(self) -> tuple[nn.Module, str]:
        """Choose what is returned, build the class, and give it the module's contents."""
        if self.depth == 0:
            extra = self.draw(st.lists(st.sampled_from(self.names), max_size=2, unique=True))
        else:
            extra = []
        result = ", ".join(dict.fromkeys([self.names[-1], *extra]))
        body = "\n        ".join([*self.lines, f"return {result}"])
        title = f"Block{self.depth}"
        source = f"class {title}(_Block):\n    def forward(self, x, k=2):\n        {body}\n"
        # linecache lets tracebacks and torch's source readers see the generated text.
        path = f"<network {next(_files)}>"
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        scope: dict[str, Any] = {"_Block": _Block, "torch": torch, "F": F, "__name__": __name__}
        exec(compile(source, path, "exec"), scope)  # noqa: S102 (own source)
        built: nn.Module = scope[title]()
        # What was made for statements that did not run is left out.
        for kept in (self.module._modules, self.module._parameters):
            for name in [n for n in kept if not re.search(rf"self\.{n}\b", body)]:
                del kept[name]
        built.__dict__.update(self.module.__dict__)
        return built.eval(), "\n".join([*self.inner, source])


def usable(*values: Any) -> bool:
    return all(
        isinstance(v, torch.Tensor) and v.numel() > 0 and bool(v.abs().max() < 1e6) for v in values
    )
