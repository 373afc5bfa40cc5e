"""The numbers of a region of a traced module or program."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from reparam.algebra import evaluate
from reparam.frontends.hosted import rebuilt
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.lift import Lifted
from reparam.fusing.driver import Discovery
from reparam.fusing.execute import hosted_inputs, run_node, run_region
from reparam.fusing.fold import FoldedLayer, dtype_name, fold_hosted, fold_norm, fold_onto
from reparam.fusing.sites import ModuleSite, described
from reparam.planner import Candidate
from reparam.program import HostedInput, Node
from reparam.reasons import Reason, Why

Model = TypeVar("Model")


class TracedDiscovery(Discovery[Model, ModuleSite]):
    """What folds in a traced model: what is the same for modules and exported programs."""

    def described(self, lifted: Lifted, region: Candidate) -> ModuleSite:
        """Decide where the model is edited for a region."""
        return described(lifted, region)

    def place(self, found: ModuleSite) -> str:
        """Name the module that the region lies in."""
        return found.block or self.whole

    def bytes_each(self, found: ModuleSite) -> int:
        """Bytes of one number of a region's layer."""
        return found.like.element_size()

    def fold(self, found: ModuleSite) -> FoldedLayer:
        """Compute the layer of a region and compare it with the region as torch runs it."""
        return fold(found.lifted, found.region, found.like)


def doubt_of(found: ModuleSite) -> Reason | None:
    """Why the layer of a region could not be used, as far as little work tells."""
    return _overflow(found) or _own_forward(found)


def _own_forward(found: ModuleSite) -> Reason | None:
    """Fold into a layer that has a forward of its own: what that returns is not read, but run."""
    region, lifted = found.region, found.lifted
    if not isinstance(region.source, HostedInput) or is_builtin(
        lifted.host_of(_hosted_layer(region))
    ):
        return None
    try:
        return fold(lifted, region, found.like).doubt
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        return Why.FORWARD_FAILED(error=f"{type(error).__name__}: {error}")


@torch.no_grad()
def _overflow(found: ModuleSite) -> Reason | None:
    """Say so if the numbers of a region's layer are too large for the type of the model."""
    like, expression = found.like, found.region.expression
    numbers = [t for n in found.region.nodes for t in found.lifted.reads(n)]
    wide = like.dtype != torch.float16 and all(_is_moderate(t) for t in numbers)
    if expression is None or wide:
        return None
    op = evaluate(expression)
    parts = [t for t in (op.kernel, op.bias) if t is not None]
    largest = max(float(t.abs().max()) for t in parts)
    fits = largest <= torch.finfo(like.dtype).max
    return None if fits else Why.OVERFLOWS(dtype=dtype_name(like.dtype))


def _is_moderate(tensor: Tensor) -> bool:
    """Whether products of a few such numbers stay far from the limit of float32."""
    if not tensor.numel():
        return True
    least, most = tensor.detach().aminmax()  # one pass, which costs the most of a large net's plan
    return float(least) > -_MODERATE and float(most) < _MODERATE


_MODERATE = 1e9


@torch.no_grad()
def fold(lifted: Lifted, region: Candidate, like: Tensor) -> FoldedLayer:
    """Compute the layer of a region of a traced module and compare it with the region.

    Args:
        lifted: The program that the region is a part of.
        region: The region.
        like: A weight whose type, device and memory format the layer gets.

    """
    if isinstance(region.source, HostedInput):
        return _fold_hosted(lifted, region, like)
    if region.norm is not None:
        norm: Any = lifted.host_of(region.norm)
        numbers = norm.running_mean, norm.running_var, norm.eps
        folded = fold_norm(region, numbers, like, partial(run_region, lifted, region))
        return replace(folded, template=norm)
    return fold_onto(region, like, partial(run_region, lifted, region))


def _fold_hosted(lifted: Lifted, region: Candidate, like: Tensor) -> FoldedLayer:
    layer = _hosted_layer(region)
    module: Any = lifted.host_of(layer)
    twin = copy.deepcopy(module).to(torch.float64)
    sample = _sample_for(module, like.device)

    def run(rows: Tensor, bias: Tensor | None) -> Tensor:
        changed: Any = rebuilt(twin, rows, bias)
        result: Tensor = changed(sample)
        return result

    def reference() -> tuple[Tensor, float]:
        done = hosted_inputs(region, sample, partial(run_node, lifted))
        for node in region.nodes - done.keys():
            if node.inputs[0] in done and node.is_layer:
                host = copy.deepcopy(lifted.host_of(node)).to(torch.float64)
                done[node] = host(done[node.inputs[0]])
        return run_region(lifted, region, sample, done=done)

    return fold_hosted(region, like.dtype, run, reference, module)


def _hosted_layer(region: Candidate) -> Node:
    return region.anchor


def _sample_for(module: Any, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spatial = [
        step * (size - 1) + 4 + stride
        for size, step, stride in zip(
            module.kernel_size, module.dilation, module.stride, strict=True
        )
    ]
    shape = (2, module.in_channels, *spatial)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)
