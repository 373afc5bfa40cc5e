"""Results in containers of a class of its own, which torch.fx would turn into plain ones."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list

_KNOWN = (dict, list, tuple, torch.Size, immutable_dict, immutable_list)


def is_special(value: object) -> bool:
    """Whether a value is a container that torch.fx would not keep the class of."""
    if type(value) in _KNOWN or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return False
    return isinstance(value, dict | list | tuple)


@dataclass(frozen=True)
class Maker:
    """Makes containers of a class without running the class's own code, which may compute.

    Attributes:
        kind: The class.
        factory: What a defaultdict makes of missing entries.
        shared: Attributes that are the entries of the same names.

    """

    kind: type
    factory: Any = None
    shared: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Maker:
        """What makes containers like this one."""
        factory = value.default_factory if isinstance(value, defaultdict) else None
        return cls(type(value), factory, cls._shared(value))

    @staticmethod
    def _shared(value: Any) -> tuple[str, ...]:
        own = vars(value) if isinstance(value, dict) and hasattr(value, "__dict__") else {}
        return tuple(name for name, part in own.items() if value.get(name, own) is part)

    @classmethod
    def parts(cls, value: Any) -> tuple[dict[Any, Any] | list[Any], dict[str, Any]]:
        """Content and other attributes of a container: the arguments of a call."""
        content = dict(value) if isinstance(value, dict) else list(value)
        shared = cls._shared(value)
        own = getattr(value, "__dict__", {}).items()
        return content, {name: part for name, part in own if name not in shared}

    @property
    def __name__(self) -> str:
        """What generated code calls it."""
        return self.kind.__name__

    def __call__(
        self, content: Mapping[Any, Any] | Sequence[Any], attributes: dict[str, Any]
    ) -> Any:
        """Make one."""
        if issubclass(self.kind, tuple):
            made: Any = tuple.__new__(self.kind, content)
        else:
            made = self.kind.__new__(self.kind)
            self._fill(made, content)
        if attributes or self.shared:
            vars(made).update(attributes)
            vars(made).update({name: content[name] for name in self.shared})  # type: ignore[call-overload]
        return made

    def _fill(self, made: Any, content: Mapping[Any, Any] | Sequence[Any]) -> None:
        if not isinstance(content, Mapping):
            list.extend(made, content)
            return
        put: Any = OrderedDict if issubclass(self.kind, OrderedDict) else dict
        for key, value in content.items():
            put.__setitem__(made, key, value)
        if self.factory is not None:
            made.default_factory = self.factory
