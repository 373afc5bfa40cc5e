"""Whatever the network, fusing it never changes its function, its cost for the worse, or itself.

``HYPOTHESIS_PROFILE=long pytest tests/fuse/test_property.py`` tries 10,000 networks.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reparam
from checking import Snapshot, assert_no_dearer, assert_same_function
from strategies import Network, networks

# The float64 rounding of a few hundred operations is some 1e-14 of the largest activation.
TOLERANCE = 1e-10

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def check(net: Network, *, with_example: bool) -> None:
    """Raise if fusing breaks any of the promises on ``net``."""
    before = Snapshot.of(net.model)
    example = net.inputs(0) if with_example else None
    fused = reparam.fuse(net.model, example)
    before.assert_unchanged(net.model)
    assert not any(part.training for part in fused.modules())
    for which in (0, 1):
        x = net.inputs(which)
        assert_same_function(net.model, fused, x, tolerance=TOLERANCE)
        assert_no_dearer(net.model, fused, x)
    before.assert_unchanged(net.model)


@given(net=networks(), with_example=st.booleans())
def test_fusing_keeps_every_promise(*, net: Network, with_example: bool) -> None:
    check(net, with_example=with_example)


@given(net=networks())
def test_fusing_twice_changes_nothing_more(net: Network) -> None:
    once = reparam.fuse(net.model)
    twice = reparam.fuse(once)
    assert_same_function(once, twice, net.inputs(1), tolerance=TOLERANCE)
    assert_no_dearer(once, twice, net.inputs(1))
