"""Run the operations of a trace as they are recorded, on tensors without numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.frontends.torch.effects import FACTORIES
from reparam.frontends.torch.recording import Recorder
from reparam.frontends.torch.running import Held, call_with_lists
from reparam.frontends.torch.skeleton import on_meta, without_numbers


class Trial:
    """A run of a module without numbers, one operation at a time.

    Args:
        module: The module, which is copied when one of its parts is first called.
        tensors: Its parameters and buffers, by name.
        device: Where the example lies.
        recorder: Notes what operations run, and nothing that is prepared for them.

    """

    def __init__(
        self, module: nn.Module, tensors: Mapping[str, Tensor], device: torch.device,
        recorder: Recorder,
    ) -> None:  # fmt: skip
        """Prepare the tensors."""
        self._module, self._device, self._recorder = module, device, recorder
        self._tensors = {name: without_numbers(tensor) for name, tensor in tensors.items()}

    def run(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Run an operation on the values of what it reads."""
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        target: Any = node.target
        if node.op == "call_module":
            return call_with_lists(self._copy[target], args, kwargs)
        if node.op == "call_method":
            if isinstance(args[0], Tensor):
                args, kwargs = fx.node.map_aggregate((args, kwargs), _without_place)
            return getattr(args[0], target)(*args[1:], **kwargs)
        if target is getattr and isinstance(args[0], Tensor) and args[1:] in _PLACES:
            return self._device if args[1] == "device" else self._device.type == "cuda"
        if target in FACTORIES:
            kwargs = {**kwargs, "device": "meta"}
        return target(*args, **kwargs)

    @functools.cached_property
    def _copy(self) -> Held:
        """What a copy of the module holds without numbers, where parts of it are called."""
        with self._recorder.pause():
            return Held(on_meta(self._module))

    def _attribute(self, name: str) -> Any:
        if name in self._tensors:
            return self._tensors[name]
        value: Any = functools.reduce(getattr, name.split("."), self._module)
        with self._recorder.pause():
            return without_numbers(value) if isinstance(value, Tensor) else value


_PLACES = (("device",), ("is_cuda",))


def _without_place(value: Any) -> Any:
    """A device as the tensors of a trace have it, which hold no numbers that could be moved."""
    return torch.device("meta") if isinstance(value, torch.device) else value
