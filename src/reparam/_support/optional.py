"""Optional packages: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from reparam.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

# Modules whose name is not the one that pip knows them by.
_PIP_NAMES = {
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
    "litert_torch": "litert-torch",
    "sklearn": "scikit-learn",
}


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra of this package brings it.

    Args:
        module: Name of the module to import, such as ``"onnxruntime"`` or ``"onnx.checker"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the beginning of a sentence (``"exporting to ONNX"``).

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The module, or a package that it imports, is not installed. Any other
            failure of the import (a broken installation) passes through as it is.

    >>> require("json", extra="deploy", purpose="reading results").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(_package(error.name or module), extra, purpose) from error


def available(module: str) -> bool:
    """Say whether an optional top-level module is installed, without importing it.

    >>> available("json"), available("surely_not_installed")
    (True, False)
    """
    return importlib.util.find_spec(module) is not None


def _package(module: str) -> str:
    """Name what is missing as pip does: the package, or the module that an old version lacks."""
    top = module.partition(".")[0]
    return module if available(top) else _PIP_NAMES.get(top, top)
