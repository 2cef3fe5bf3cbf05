"""Checking what a user gave, field by field, and saying which field is wrong.

    class DiskSpec(Checked):
        CHECKS: ClassVar = {"path": path, "readonly": flag}

        path: Path
        readonly: bool = False

A check takes what was given and returns the value as the record holds it, or raises ValueError with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ringfence.core.late import LateModule
from ringfence.core.record import Record

if TYPE_CHECKING:
    import json
else:  # a start reads none
    json = LateModule("json")

Check = Callable[[Any], Any]


class SpecError(ValueError):
    """A value that cannot be: `where` is the field's name, empty where several do not fit together."""

    def __init__(self, where: str, why: str, given: object) -> None:
        super().__init__(f"{where or 'the machine'}: {why}")
        self.where, self.why, self.given = where, why, given


class Checked(Record):
    """A record that checks each value which is given to it, and then `fits` the whole.  Defaults are not checked."""

    CHECKS: ClassVar[dict[str, Check]] = {}

    def __init__(self, **given: Any) -> None:
        values = {}
        for name, value in given.items():
            check = self.CHECKS.get(name)
            if check is None:
                raise SpecError(name, "there is no such field", value)
            try:
                values[name] = check(value)
            except SpecError as error:
                raise SpecError(f"{name}.{error.where}", error.why, error.given) from error
            except ValueError as error:
                raise SpecError(name, str(error), value) from error
        for name, default in self.FIELDS.items():
            if name not in values and default is self.NEEDED:
                raise SpecError(name, "a value is needed", None)
        super().__init__(**values)
        try:
            self.fits()
        except ValueError as error:
            raise SpecError("", str(error), given) from error

    def fits(self) -> None:
        """Raises ValueError where values do not go with each other."""

    def model_dump_json(self) -> str:
        return json.dumps(self.values(), default=_plain)

    @classmethod
    def model_validate_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def _plain(value: object) -> object:
    return value.values() if isinstance(value, Record) else str(value)


# -- checks


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is needed")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is needed")
    return value


def path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ValueError("a path is needed")
    return Path(value)


def choice(*known: Any) -> Check:
    """One of these."""

    def check(value: Any) -> Any:
        if value not in known or isinstance(value, bool):
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, known))}")
        return value

    return check


def optional(check: Check) -> Check:
    """None, or what `check` takes."""
    return lambda value: None if value is None else check(value)


def many(check: Check, one: tuple[type, ...] = ()) -> Check:
    """Any number, as a tuple.  A single value of the types `one` is a tuple of one."""

    def check_all(value: Any) -> tuple[Any, ...]:
        if one and isinstance(value, one):
            return (check(value),)
        if not isinstance(value, list | tuple):
            raise ValueError("a list is needed")
        return tuple(check(item) for item in value)

    return check_all


def record(kind: type[Checked]) -> Check:
    """A record of this kind, or its values by name."""

    def check(value: Any) -> Checked:
        if isinstance(value, dict):
            return kind(**value)
        if not isinstance(value, kind):
            raise ValueError(f"a {kind.__name__} is needed")
        return value

    return check
