"""The error tree of the package: every error a user can meet is a :class:`ReparamError`.

Messages follow one shape: what was found, what was needed, where, and what the user can do.
"""

from __future__ import annotations

from reparam.reasons import Reason, Why

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "InexactError",
    "InputError",
    "MachineWarning",
    "MissingExtraError",
    "ReparamError",
    "TrainingModeError",
    "UnsupportedModelError",
    "VerificationError",
]


class ReparamError(Exception):
    """Base class of every error that this package raises on purpose."""


class InputError(ReparamError, ValueError):
    """An argument, file or name given by the user cannot be used as it is."""


class InexactError(ReparamError, ValueError):
    """Two operators cannot be combined without changing the function they compute.

    Attributes:
        reason: Why, as data.

    """

    def __init__(self, why: Reason | str) -> None:
        """Take a reason, or the message of one that only a person reads."""
        self.reason = Why.INEXACT(found=why) if isinstance(why, str) else why
        super().__init__(str(self.reason))


class TrainingModeError(ReparamError, RuntimeError):
    """A model with batch normalisation is in training mode where eval mode is needed."""


class UnsupportedModelError(InputError):
    """The model is of a kind that cannot be read (a ScriptModule, for example)."""


class CheckpointError(InputError):
    """A checkpoint does not fit the model, or cannot be read safely."""


class ArgumentError(InputError):
    """A factory of a model does not take an argument, such as a number of classes."""


class DataError(InputError):
    """A data set is missing, empty, or does not fit the model."""


class ExportError(ReparamError, RuntimeError):
    """An export could not be written, or does not compute what the model computes."""


class VerificationError(ReparamError, AssertionError):
    """Two models that should be equal are not."""


class MissingExtraError(ReparamError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Say which package is missing, what needs it, and the command that brings it."""
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'reparam[{extra}]'"
        )


class MachineWarning(UserWarning):
    """What was asked for works on this machine, and is slower or less exact here than elsewhere."""
