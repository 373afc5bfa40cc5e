"""Weights with which a model cannot compute anything."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from reparam.verifying.outputs import numbers


def unsound_weight(model: object) -> str | None:
    """Name the first weight of a layer that is not finite, or the first variance below zero.

    Buffers and parameters of a user's own may hold infinities (masks do), but no NaN.
    """
    if not isinstance(model, nn.Module):
        return None
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, _NormBase):
            own.update(module.named_buffers(recurse=False))
            variance = module.running_var
            if variance is not None and bool((variance + module.eps <= 0).any()):
                return f"the running variance of {path or type(module).__name__} is not positive"
        masks = not type(module).__module__.startswith("torch.nn")
        for name, tensor in own.items():
            if not _is_sound(tensor, infinite=masks):
                where = f"{path}.{name}" if path else name
                return f"{where} holds a number that is not finite"
    return None


def _is_sound(tensor: Tensor, *, infinite: bool) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return True
    values = numbers(tensor)
    return not bool(values.isnan().any() if infinite else (~values.isfinite()).any())
