"""Optimisations are left out by name."""

from __future__ import annotations

import pytest

from ringfence.core.errors import UserError
from ringfence.engine.switches import OPTIMISATIONS, from_environment, without


def test_names_are_read_one_by_one_and_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without("") == frozenset()
    assert without(" native-translation ,") == {"native-translation"}
    assert without("all") == OPTIMISATIONS.keys()
    monkeypatch.setenv("RINGFENCE_WITHOUT", "native-translation")
    assert from_environment() == {"native-translation"}


def test_a_mistyped_name_is_told() -> None:
    with pytest.raises(UserError, match="nativ"):
        without("nativ")
