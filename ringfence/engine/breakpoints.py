"""Hardware breakpoints: DR0-DR3 as DR7 arms them (SDM 3B 18.2, debug registers).

The instructions that meet one are carried out in the interpreter, which tells of every access here; how they are found is told in
translate/native_points.py.  With breakpoints on I/O armed the vCPU runs one instruction at a time.
"""

from __future__ import annotations

from ringfence.engine.vcpu_state import VcpuState

_EXECUTE, _WRITE, _PORT, _READ_WRITE = range(4)
_LENGTHS = (1, 2, 8, 4)  # by LENn
_ARMED = 0xFF
_CR4_DE = 1 << 3


class Breakpoints:
    """Of one vCPU.  `hits` has DR6's bits 3:0 of what the current instruction has touched so far."""

    def __init__(self, state: VcpuState) -> None:
        self._state = state
        self.active: list[tuple[int, int, int, int]] = []
        self.hits = 0

    def begin(self, rip: int) -> int:
        """An instruction begins: bits of the breakpoints on its execution."""
        state, active, found = self._state, self.active, 0
        self.hits = 0
        active.clear()
        dr7 = state["dr7"]
        if not dr7 & _ARMED:
            return 0
        for n in range(4):
            if dr7 >> 2 * n & 3:
                kind, length, address = dr7 >> 16 + 4 * n & 3, _LENGTHS[dr7 >> 18 + 4 * n & 3], state[f"dr{n}"]
                if kind != _EXECUTE:
                    active.append((1 << n, kind, address & -length, length))
                elif address == rip:
                    found |= 1 << n
        return found

    def touch(self, address: int, size: int, write: bool) -> None:
        """The instruction reads or writes `size` bytes at a linear address."""
        for bit, kind, base, length in self.active:
            if (kind == _READ_WRITE or (write and kind == _WRITE)) and address < base + length and base < address + size:
                self.hits |= bit

    def touch_port(self, port: int, size: int) -> None:
        if self.active and self._state["cr4"] & _CR4_DE:
            for bit, kind, base, length in self.active:
                if kind == _PORT and port < base + length and base < port + size:
                    self.hits |= bit
