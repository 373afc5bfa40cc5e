"""Write a model in a deployment format, loaded back and checked before the file appears."""

from __future__ import annotations

from reparam.deploy.engines import Format
from reparam.deploy.exporting.certificate import Certificate, certify, check_certificate
from reparam.deploy.exporting.exporter import ExportResult, export
from reparam.deploy.exporting.formats import formats
from reparam.deploy.exporting.metadata import read_metadata
from reparam.deploy.exporting.reloading import load_fused

__all__ = [
    "Certificate",
    "ExportResult",
    "Format",
    "certify",
    "check_certificate",
    "export",
    "formats",
    "load_fused",
    "read_metadata",
]
