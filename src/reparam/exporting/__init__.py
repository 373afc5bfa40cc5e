"""Write a model in a deployment format, loaded back and checked before the file appears."""

from __future__ import annotations

from reparam.exporting.exporter import ExportResult, export
from reparam.exporting.formats import Format, formats
from reparam.exporting.metadata import read_metadata
from reparam.exporting.reloading import load_fused

__all__ = ["ExportResult", "Format", "export", "formats", "load_fused", "read_metadata"]
