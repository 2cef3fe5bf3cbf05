"""Records: classes of named values that are never changed, as frozen data classes are.

    class Drive(Record):
        path: Path
        readonly: bool = False

Type checkers know them as data classes.  Those write code at every import and have Python compile it, half a millisecond for
each class; this base has one constructor for all.  It is for what every start of a machine loads; everything else may use
`dataclasses`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Equal when of one class and of equal values.  A default that is a dict is given out as a copy."""

    NEEDED: ClassVar[Any] = object()
    FIELDS: ClassVar[dict[str, Any]] = {}
    """Every field, in order, with its default or `NEEDED`."""
    UNSHOWN: ClassVar[frozenset[str]] = frozenset()
    """Fields that `repr` leaves out."""
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = [name for name, kind in cls.__annotations__.items() if not str(kind).startswith("ClassVar")]
        cls.FIELDS = {**cls.FIELDS, **{name: vars(cls).get(name, cls.NEEDED) for name in own}}
        cls.__match_args__ = tuple(cls.FIELDS)  # type: ignore[misc]

    def __init__(self, *values: Any, **named: Any) -> None:
        if values:
            if len(values) > len(self.FIELDS):
                raise TypeError(f"{type(self).__name__} takes {len(self.FIELDS)} values")
            for name, value in zip(self.FIELDS, values, strict=False):
                if name in named:
                    raise TypeError(f"{type(self).__name__}: {name} is given twice")
                named[name] = value
        if len(named) != len(self.FIELDS):
            for name, default in self.FIELDS.items():
                if name not in named:
                    if default is self.NEEDED:
                        raise TypeError(f"{type(self).__name__}: {name} is missing")
                    named[name] = dict(default) if type(default) is dict else default
        if len(named) != len(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has no field {min(named.keys() - self.FIELDS.keys())}")
        self.__dict__.update(named)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        return type(self)(**{**self.values(), **changes})

    def values(self) -> dict[str, Any]:
        """By name; without what is cached beside them."""
        return {name: self.__dict__[name] for name in self.FIELDS}

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: records do not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted: records do not change")

    def __eq__(self, other: object) -> bool:
        return self.values() == other.values() if type(self) is type(other) and isinstance(other, Record) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *self.values().values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.values().items() if name not in self.UNSHOWN)
        return f"{type(self).__name__}({shown})"
