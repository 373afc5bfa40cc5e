"""What ``reparam quantize`` prints."""

from __future__ import annotations

from reparam.cli.quantizing.telling import tell

__all__ = ["tell"]
