"""One door for every kind of data."""

from __future__ import annotations

from reparam.data.dataset import ImageData
from reparam.data.digits import open_digits
from reparam.errors import DataError

__all__ = ["open_data"]


def open_data(source: str, *, image_size: int | None = None) -> ImageData:
    """Open a data set.

    Args:
        source: ``"digits"`` for the data set that scikit-learn brings.
        image_size: Height and width in pixels that a model sees; as stored when None.

    Raises:
        DataError: There is nothing of that name.

    Example:
        >>> data = open_data("digits", image_size=16)
        >>> (
        ...     data.image_shape,
        ...     data.num_classes,
        ...     len(data.train),
        ...     len(data.validation),
        ...     len(data.test),
        ... )
        ((3, 16, 16), 10, 1259, 179, 359)
    """
    if source == "digits":
        return open_digits(image_size=image_size)
    raise DataError(f"there is no data set {source!r}; known by name: digits")
