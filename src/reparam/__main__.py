"""``python -m reparam`` is the command ``reparam``."""

from __future__ import annotations

from reparam.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
