"""A debugger's breakpoints and watchpoints in one vCPU: the tables that translated code looks at, and the interpreter's side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ringfence.engine.api import Watch
from ringfence.translate.code_memory import CodeMemory
from ringfence.translate.native_points_layout import (
    DEBUG_REGISTERS,
    MAX_BREAKPOINTS,
    MAX_WATCHES,
    OWN_POINT_PAGES,
    OWN_WATCH_COUNT,
    OWN_WATCH_PAGES,
    POINT_COUNT,
    POINTS,
    WATCH_BYTES,
    WATCH_HIT,
    WATCH_READ,
    WATCH_WRITE,
    WATCHES,
)

_LAST_ADDRESS = (1 << 64) - 1


class Points:
    """`met` is the first watchpoint that the interpreted instruction has touched so far."""

    def __init__(self, code: CodeMemory) -> None:
        self._code = code
        self.breakpoints: frozenset[int] = frozenset()
        self.watches: tuple[Watch, ...] = ()
        self.met: Watch | None = None

    def set(self, breakpoints: Sequence[int], watches: Sequence[Watch]) -> None:
        """Replaces all; raises ValueError for more than the tables hold.  The engine refreshes its filters and flushes its TLB."""
        found = frozenset(breakpoints)
        if len(found) > MAX_BREAKPOINTS or len(watches) > MAX_WATCHES:
            raise ValueError(f"{len(found)} breakpoints and {len(watches)} watchpoints are more than the engine has room for")
        self.breakpoints, self.watches, self.met = found, tuple(watches), None
        put = self._code.put
        for k, address in enumerate(found):
            put(POINTS + 8 * (DEBUG_REGISTERS + k), address)
        for k, watch in enumerate(watches):
            last = min(watch.address + watch.size_bytes - 1, _LAST_ADDRESS)
            kinds = WATCH_READ * watch.on_read | WATCH_WRITE * watch.on_write
            for n, value in enumerate((watch.address, last, kinds)):
                put(WATCHES + WATCH_BYTES * (DEBUG_REGISTERS + k) + 8 * n, value)
        put(OWN_POINT_PAGES, _pages((a, a) for a in found))
        put(POINT_COUNT, len(found))
        put(OWN_WATCH_PAGES, _pages((w.address, w.address + w.size_bytes - 1) for w in watches))
        put(OWN_WATCH_COUNT, len(watches))
        put(WATCH_HIT, 0)

    def touch(self, address: int, size: int, write: bool) -> None:
        """The interpreted instruction reads or writes `size` bytes at a linear address."""
        if self.met is None:
            for watch in self.watches:
                wanted = watch.on_write if write else watch.on_read
                if wanted and address < watch.address + watch.size_bytes and watch.address < address + size:
                    self.met = watch
                    return

    def take(self) -> Watch | None:
        """The watchpoint that was met since the last call, by the interpreter or by an implicit access of native code."""
        met, self.met = self.met, None
        number = self._code.get(WATCH_HIT)
        if number:
            self._code.put(WATCH_HIT, 0)
            met = met or self.watches[number - 1]
        return met


def _pages(ranges: Iterable[tuple[int, int]]) -> int:
    """The filter of pages: bit n for page numbers that are n modulo 64."""
    bits = 0
    for first, last in ranges:
        for page in range(first >> 12, min(last >> 12, (first >> 12) + 63) + 1):
            bits |= 1 << (page & 63)
    return bits
