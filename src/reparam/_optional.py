"""Optional packages: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from reparam.errors import MissingExtraError

__all__ = ["available", "require"]


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import an optional module, or say which extra of this package brings it.

    Args:
        module: Name of the module to import, such as ``"onnxruntime"`` or ``"onnx.checker"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the beginning of a sentence (``"Exporting to ONNX"``).

    Returns:
        The imported module.

    Raises:
        MissingExtraError: The module, or the package that holds it, is not installed.

    >>> require("json", extra="deploy", purpose="Reading results").loads("[1]")
    [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise MissingExtraError((error.name or package).partition(".")[0], extra, purpose) from error


def available(module: str) -> bool:
    """Say whether an optional top-level module is installed, without importing it.

    >>> available("json"), available("surely_not_installed")
    (True, False)
    """
    return importlib.util.find_spec(module) is not None
