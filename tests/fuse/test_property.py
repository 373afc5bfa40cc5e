"""Whatever the network, fusing it never changes its function, its cost for the worse, or itself.

``HYPOTHESIS_PROFILE=long pytest tests/fuse/test_property.py`` tries 10,000 networks. In parts that
can be repeated, each with its own seed and printing it where it fails::

    for seed in 1 2 3 4 5 6 7 8 9 10; do
        HYPOTHESIS_PROFILE=long HYPOTHESIS_EXAMPLES=1000 \
            pytest tests/fuse/test_property.py -k every_promise --hypothesis-seed=$seed
    done
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import reparam
from checking import Snapshot, assert_no_dearer, assert_same_function
from strategies import Network, networks
from zoo import randomise

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


@given(net=networks(), with_example=st.sampled_from([True, True, True, False]))
def test_fusing_keeps_every_promise(*, net: Network, with_example: bool) -> None:
    check(net, with_example=with_example)


@settings(max_examples=50)
@given(net=networks())
def test_fusing_twice_changes_nothing_more(net: Network) -> None:
    once = reparam.fuse(net.model, net.inputs(0))
    twice = reparam.fuse(once, net.inputs(0))
    assert_same_function(once, twice, net.inputs(1), tolerance=TOLERANCE)
    assert_no_dearer(once, twice, net.inputs(1))


# ------------------------------------------------------------------------------- can this fail?


@pytest.fixture
def wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a bias, and a second padded kernel, be folded through zero padding."""
    monkeypatch.setattr("reparam.algebra.geometry._check_padding_reads", lambda *_: None)


@pytest.fixture
def no_self_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the product does to find itself wrong."""
    monkeypatch.setattr("reparam.fusing.modules.compare_runs", lambda *_, **__: None)
    monkeypatch.setattr("reparam.fusing.fold.FoldedLayer.agrees", True)


@pytest.mark.usefixtures("wrong_rule", "no_self_checks")
def test_the_networks_find_a_wrong_rule() -> None:
    """Random networks alone, without the product's own checks, notice the seeded mistake."""

    @settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate])
    @given(net=networks())
    def search(net: Network) -> None:
        check(net, with_example=True)

    with pytest.raises(AssertionError):
        search()


@pytest.mark.usefixtures("wrong_rule")
def test_the_product_finds_its_own_wrong_rule() -> None:
    """With the rule wrong, the fold is compared with what it replaces, and not used."""
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1))
    model = randomise(model.double())
    with pytest.warns(reparam.FoldWarning, match="differs"):
        fused = reparam.fuse(model)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    assert_same_function(model, fused, x, tolerance=TOLERANCE)
