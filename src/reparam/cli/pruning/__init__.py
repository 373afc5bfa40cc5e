"""Pruning from the command line: what was asked for, the nets it needs, and what is told."""

from __future__ import annotations

from reparam.cli.pruning.inputs import Material, MaterialOptions, load_material, score
from reparam.cli.pruning.summary import as_dict, tell

__all__ = ["Material", "MaterialOptions", "as_dict", "load_material", "score", "tell"]
