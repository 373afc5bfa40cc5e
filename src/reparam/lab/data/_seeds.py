"""Seeds that are functions of *where* in a run they are used.

Every random choice of a training run (the order of an epoch, the crop of an image, a dropout mask)
is drawn from a generator seeded by its coordinates: ``derive_seed(seed, "crop", epoch, step)``.
Nothing depends on what was drawn before, so a run that is killed and resumed draws what it would
have drawn, on any number of processes.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *coordinates: int | str) -> int:
    """Return a 63-bit seed that depends on every coordinate.

    Args:
        seed: The seed of the whole run.
        coordinates: What the seed is for: names and counters, in order.

    Example:
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
        True
        >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 2)
        False
    """
    text = "/".join(repr(part) for part in (seed, *coordinates))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *coordinates: int | str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *coordinates))
