"""Call functions around the layers of a net while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(
    layers: Mapping[str, nn.Module],
    *,
    before: Callable[[str, Any, Any], object] | None = None,
    after: Callable[[str, Any, Any, Any], object] | None = None,
) -> Iterator[None]:
    """Call functions around every run of the layers, while the block lasts.

    Args:
        layers: Layers by path.
        before: Called with path, layer and inputs; may return other inputs.
        after: Called with path, layer, inputs and output; may return another output.
    """
    with ExitStack() as hooks:

        def keep(handle: RemovableHandle) -> None:
            hooks.callback(handle.remove)

        for name, layer in layers.items():
            if before is not None:
                keep(layer.register_forward_pre_hook(partial(before, name)))
            if after is not None:
                keep(layer.register_forward_hook(partial(after, name)))
        yield
