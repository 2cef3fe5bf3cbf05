"""State, declared once.

A device or CPU names its registers as class attributes; everything that needs them (reset, save, load, schema, memory
layout, documentation) is derived from the declaration::

    class UartState(State):
        ier = Field(8, doc="interrupt enable register")
        fifo = Field(8, count=16, doc="receive FIFO")

A `State` object holds plain Python ints (lists of ints where `count` is given).  Writes are not range-checked on the hot
path; `save` and `load` check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ringfence.core.errors import SnapshotError
from ringfence.core.late import LateModule

if TYPE_CHECKING:
    import hashlib
else:  # for schemas
    hashlib = LateModule("hashlib")


class Field:
    """One named register: `bits` wide, `count` of them (a list when given), with its value at `reset`."""

    __slots__ = ("bits", "count", "reset", "doc", "name")

    def __init__(self, bits: int, count: int | None = None, reset: int = 0, doc: str = "") -> None:
        self.bits = bits
        self.count = count
        self.reset = reset
        self.doc = doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:
        # On an instance the name holds the value (`reset` puts it there), never the Field.
        def __get__(self, instance: State, owner: type) -> Any: ...
        def __set__(self, instance: State, value: Any) -> None: ...

    def initial(self) -> Any:
        return self.reset if self.count is None else [self.reset] * self.count


class State:
    """Base of all declared state.  `reset()` gives every field its initial value."""

    FIELDS: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        cls.FIELDS = {**cls.FIELDS, **{k: v for k, v in vars(cls).items() if isinstance(v, Field)}}

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        for name, field in self.FIELDS.items():
            setattr(self, name, field.initial())

    def save(self) -> dict[str, Any]:
        """The value of every field: ints, and lists of ints."""
        return {n: (getattr(self, n) if f.count is None else list(getattr(self, n))) for n, f in self.FIELDS.items()}

    def load(self, saved: dict[str, Any]) -> None:
        """Replaces every field.  Raises SnapshotError when a field is missing, left over or out of range; then nothing changed."""
        if saved.keys() != self.FIELDS.keys():
            raise SnapshotError(f"{type(self).__name__}: fields differ: {sorted(saved.keys() ^ self.FIELDS.keys())}")
        for name, field in self.FIELDS.items():
            value = saved[name]
            values = [value] if field.count is None else value
            if field.count is not None and (not isinstance(value, list) or len(value) != field.count):
                raise SnapshotError(f"{type(self).__name__}.{name}: {field.count} values are needed")
            if any(not isinstance(v, int) or not 0 <= v < 1 << field.bits for v in values):
                raise SnapshotError(f"{type(self).__name__}.{name}: does not fit {field.bits} bits")
        for name, field in self.FIELDS.items():
            setattr(self, name, saved[name] if field.count is None else list(saved[name]))

    @classmethod
    def schema_hash(cls) -> str:
        """Changes whenever a field is added, removed, renamed or resized."""
        text = ";".join(f"{n}:{f.bits}x{f.count}" for n, f in cls.FIELDS.items())
        return hashlib.sha256(f"{cls.__name__};{text}".encode()).hexdigest()[:16]
