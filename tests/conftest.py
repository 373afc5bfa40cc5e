"""What every test stands on: seeded generators, one torch thread a worker, Hypothesis profiles."""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, register_random, settings

if TYPE_CHECKING:
    from torch import Tensor

# Test processes that each start a thread per core only take the cores away from one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# No deadline in any profile: the first example pays for the warming up of torch's kernels, and the
# time of an example says nothing about its result. `HYPOTHESIS_PROFILE=long` is for a run by hand.
_TORCH_IS_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "default", max_examples=100, deadline=None, suppress_health_check=_TORCH_IS_SLOW
)
settings.register_profile(
    "ci", parent=settings.get_profile("default"), derandomize=True, database=None, print_blob=True
)
settings.register_profile(
    "long",
    parent=settings.get_profile("default"),
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "10000")),
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default")
)


class _TorchGenerator:
    """Torch's global generator as Hypothesis wants it, so that an example repeats exactly."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> Tensor:
        return torch.get_rng_state()

    def setstate(self, state: Tensor) -> None:
        torch.set_rng_state(state)


_ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.toml")

# Hypothesis holds it weakly; this name keeps it.
_TORCH_GENERATOR = _TorchGenerator()
register_random(_TORCH_GENERATOR)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state, whatever ran before it in this process."""
    torch.manual_seed(0)


# What is skipped -------------------------------------------------------------------------------


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a test was skipped that may not be, if REPARAM_SKIPS=listed asks for that."""
    unlisted = _skipped(session.config)
    if unlisted and os.environ.get("REPARAM_SKIPS") == "listed" and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say in one line how to have what was skipped."""
    missing = _skipped(config)
    if missing:
        terminalreporter.write_line(
            f"{sum(missing.values())} tests were skipped for what is missing here: "
            + "; ".join(sorted(missing))
        )


def _skipped(config: pytest.Config) -> Counter[str]:
    """Count the skipped tests by their reasons, but for those that tests/allowed_skips.toml lists.

    In a worker of pytest-xdist nothing is counted: its reports are the main process's.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = [] if reporter is None else reporter.stats.get("skipped", [])
    reasons = (str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    listed = tomllib.loads(_ALLOWED_SKIPS.read_text(encoding="utf-8"))
    return Counter(reason for reason in reasons if not any(words in reason for words in listed))
