"""The whole story on bundled data: train, fold, prove, export, measure, show."""

from __future__ import annotations

from reparam.cli.demo.reporter import Reporter
from reparam.cli.demo.run import Outcome, run
from reparam.cli.demo.settings import FULL, QUICK, Settings
from reparam.cli.demo.summary import caption, table

__all__ = ["FULL", "QUICK", "Outcome", "Reporter", "Settings", "caption", "run", "table"]
