"""What the processor can compute: its instruction sets, as PyTorch and the engines use them."""

from __future__ import annotations

import os

import torch

# Of all that a processor says of itself, what decides how fast and how exactly it multiplies.
_ARITHMETIC = (
    "amx", "avx", "bf16", "dot", "f16c", "fma", "fp16", "i8mm", "neon", "sme", "sse4", "sve",
)  # fmt: skip
_BF16 = {"amx_bf16", "avx512_bf16", "sve_bf16"}
_OLDER = ("amx_tile", "avx2", "avx512", "avx512_bf16", "vnni")
"""What PyTorch could be asked for one by one before it had a list of all."""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that keep oneDNN, and with it PyTorch and OpenVINO, from newer instructions."""
_BF16_LIMITS = ("ALL", "DEFAULT", "BF16", "FP16", "AMX", "AVX10")


def instruction_sets() -> tuple[str, ...]:
    """Return the names of the processor's instruction sets for arithmetic, in order.

    >>> isinstance(instruction_sets(), tuple)
    True
    """
    if hasattr(torch.cpu, "get_capabilities"):
        found = {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    else:
        asked = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in _OLDER}
        found = {name for name, ask in asked.items() if ask is not None and ask()}
    return tuple(sorted(name for name in found if name.startswith(_ARITHMETIC)))


def multiplies_bf16() -> bool:
    """Say whether there are instructions that multiply bfloat16, and oneDNN may use them.

    Where there are none, bfloat16 is computed by conversions to and from float32, which takes
    longer than float32 itself.

    >>> multiplies_bf16() in (True, False)
    True
    """
    limit = next(filter(None, map(os.environ.get, _LIMITS)), "ALL").upper()
    return any(part in limit for part in _BF16_LIMITS) and not _BF16.isdisjoint(instruction_sets())
