"""How a machine ended, and which exit status of the command that is."""

from __future__ import annotations

from enum import Enum

from ringfence.core.record import Record

STATUS_CRASHED = 70  # EX_SOFTWARE of sysexits.h
STATUS_TIMEOUT = 124  # as timeout(1)
STATUS_USER_ERROR = 125  # as docker run: the fault lies before the guest
STATUS_STOPPED = 130  # left through the console's escape, as after Ctrl-C


class Ending(Enum):
    """Why a machine does not run any more."""

    POWER_OFF = "power-off"
    DEBUG_EXIT = "debug-exit"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    STOPPED = "stopped"


class ExitStatus(Record):
    """`code` is the command's exit status.  After a crash `reason` says what happened, `last_exit` what the engine
    returned last, and `registers` holds the vCPU as it was then."""

    ending: Ending
    code: int
    reason: str = ""
    last_exit: str = ""
    registers: dict[str, int] = {}
    detail: str = ""

    @classmethod
    def powered_off(cls) -> ExitStatus:
        return cls(Ending.POWER_OFF, 0)

    @classmethod
    def debug_exit(cls, code: int) -> ExitStatus:
        """`code` is already `(value << 1) | 1`; a process can return its low eight bits only."""
        return cls(Ending.DEBUG_EXIT, code & 0xFF, f"the guest wrote the value {code >> 1} to the debug-exit port")

    @classmethod
    def timed_out(cls, timeout_s: float) -> ExitStatus:
        return cls(Ending.TIMEOUT, STATUS_TIMEOUT, f"the machine still ran after {timeout_s:g} s")

    @classmethod
    def stopped(cls, code: int = STATUS_STOPPED, reason: str = "stopped by its user") -> ExitStatus:
        return cls(Ending.STOPPED, code, reason)

    @classmethod
    def crashed(cls, reason: str, last_exit: str, registers: dict[str, int], detail: str = "") -> ExitStatus:
        return cls(Ending.CRASHED, STATUS_CRASHED, reason, last_exit, registers, detail)

    def report(self) -> str:
        """For a person, several lines after a crash."""
        if self.ending is not Ending.CRASHED:
            return self.reason
        parts = [f"The guest crashed: {self.reason}.", f"Last exit: {self.last_exit or 'none'}"]
        if self.registers:
            parts.append(register_dump(self.registers))
        if self.detail:
            parts.append(self.detail.rstrip())
        return "\n".join(parts)


_GENERAL = ("rax rbx rcx rdx", "rsi rdi rbp rsp", "r8 r9 r10 r11", "r12 r13 r14 r15")
_CONTROL = ("rip rflags", "cr0 cr2 cr3 cr4", "efer cr8")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr")
_TABLES = ("gdtr", "idtr")


def register_dump(registers: dict[str, int]) -> str:
    """The registers in rows as manuals print them; those that the engine did not give are left out."""
    rows = ["  ".join(f"{name:>6} {registers[name]:016x}" for name in row.split() if name in registers) for row in (*_GENERAL, *_CONTROL)]
    for name in _SEGMENTS:
        if name in registers:
            base, limit = registers.get(f"{name}_base", 0), registers.get(f"{name}_limit", 0)
            rows.append(f"{name:>6} {registers[name]:04x} base {base:016x} limit {limit:08x} attr {registers.get(f'{name}_attr', 0):03x}")
    for name in _TABLES:
        if f"{name}_base" in registers:
            rows.append(f"{name:>6} base {registers[f'{name}_base']:016x} limit {registers.get(f'{name}_limit', 0):04x}")
    return "\n".join(row for row in rows if row)
