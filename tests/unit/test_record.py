"""Records: constructor, equality, copies; and that nothing of one can be changed."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import pytest

from ringfence.core.record import Record


class Place(Record):
    UNSHOWN: ClassVar = frozenset(("notes",))

    name: str
    line: int = 1
    notes: dict[str, int] = {}

    @cached_property
    def text(self) -> str:
        return f"{self.name}:{self.line}"


class Exact(Place):
    column: int = 0


def test_values_by_place_and_by_name() -> None:
    assert Place("a", 2) == Place(line=2, name="a") == Place(name="a", line=2, notes={})
    assert (Exact("a").line, Exact("a", 3, {}, 4).column) == (1, 4)


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), (("a",), {"name": "b"}), (("a",), {"row": 1}), (("a", 1, {}, 3), {}), (("a", 1, {}), {"row": 1})],
)
def test_wrong_values_are_refused(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Place(*values, **named)


def test_equal_only_when_of_one_class() -> None:
    assert Place("a") != Exact("a")
    assert Place("a") != ("a", 1, {})
    assert hash(Exact("a", 1, ())) == hash(Exact("a", notes=()))  # type: ignore[arg-type]


def test_nothing_can_be_changed() -> None:
    place = Place("a")
    with pytest.raises(AttributeError):
        place.line = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del place.line
    assert place.line == 1


def test_a_default_dict_is_each_record_s_own() -> None:
    one, other = Place("a"), Place("a")
    one.notes["x"] = 1
    assert other.notes == {}


def test_what_is_cached_is_no_value() -> None:
    place = Place("a")
    assert place.text == "a:1"
    assert place == Place("a")
    assert place.replace(line=5).text == "a:5"


def test_shown_and_matched() -> None:
    assert repr(Place("a", 2, {"much": 1})) == "Place(name='a', line=2)"
    match Place("a", 7):
        case Place(name, line):
            assert (name, line) == ("a", 7)
