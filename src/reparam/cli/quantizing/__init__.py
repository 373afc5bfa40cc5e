"""What ``reparam quantize`` reads and prints."""

from __future__ import annotations

from reparam.cli.quantizing.reading import load_fused
from reparam.cli.quantizing.telling import tell

__all__ = ["load_fused", "tell"]
