"""Modules that are imported when they are first used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ringfence.core.late import LateModule


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "slow_to_load.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_to_load", raising=False)
    return "slow_to_load"


def test_a_module_is_imported_by_its_first_use(name: str) -> None:
    module = LateModule(name)
    assert name not in sys.modules
    assert module.answer == 42
    assert name in sys.modules


def test_what_was_used_once_is_kept(name: str) -> None:
    module = LateModule(name)
    assert module.answer == 42
    del sys.modules[name]
    assert module.answer == 42
    assert name not in sys.modules


def test_what_is_missing_is_told_as_by_an_import(name: str) -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = LateModule(name).nothing
    with pytest.raises(ModuleNotFoundError):
        _ = LateModule("ringfence.no_such_module").name
