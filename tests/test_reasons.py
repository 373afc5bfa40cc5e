"""Reasons are data; one file words them."""

from __future__ import annotations

import string

import pytest

from reparam import Why


@pytest.mark.parametrize("kind", Why, ids=lambda kind: kind.name)
def test_every_kind_of_reason_can_be_worded(kind: Why) -> None:
    fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(kind.value) if name]
    given = {
        name: 0.5 if spec.endswith(("g", "f", "e")) else 7 if spec else name
        for name, spec in fields
    }
    reason = kind(**given)
    assert reason.kind is kind
    assert not set("[]|{}") & set(str(reason) + reason.general)
    assert all(
        f"{value:{spec}}" in str(reason)
        for (_, spec), value in zip(fields, given.values(), strict=True)
    )
    assert str(reason)
    assert not str(reason).endswith(".")
    assert reason == kind(**given)
    assert len({reason, kind(**given)}) == 1
