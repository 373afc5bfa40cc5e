"""What ``reparam quantize`` prints."""

from __future__ import annotations

from reparam.cli.quantizing.summary import tell

__all__ = ["tell"]
