"""Commands behind gdb's `monitor`, named as QEMU's monitor names them."""

from __future__ import annotations

from collections.abc import Callable

from ringfence.debug import paging
from ringfence.debug.registers import linear_pc
from ringfence.debug.target import Target

_GENERAL = ("rax rbx rcx rdx", "rsi rdi rbp rsp", "r8 r9 r10 r11", "r12 r13 r14 r15")


def _help(target: Target, words: list[str]) -> str:
    return "".join(f"{name:<20} {function.__doc__}\n" for name, function in _COMMANDS.items())


def _info_registers(target: Target, words: list[str]) -> str:
    """all registers of the vCPU, with the hidden parts of segments"""
    r = target.registers()
    rows = ["  ".join(f"{name:>3}={r[name]:016x}" for name in row.split()) for row in _GENERAL]
    rows.append(f"rip={r['rip']:016x} (linear {linear_pc(r):x})  rflags={r['rflags']:08x}  cpl={r['cpl']}")
    for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"):
        rows.append(f"{name:<4} {r[name]:04x} base {r[f'{name}_base']:016x} limit {r[f'{name}_limit']:08x} attr {r[f'{name}_attr']:04x}")
    rows += [f"{name} base {r[f'{name}_base']:016x} limit {r[f'{name}_limit']:04x}" for name in ("gdtr", "idtr")]
    rows.append("  ".join(f"{name}={r[name]:x}" for name in ("cr0", "cr2", "cr3", "cr4", "efer")))
    rows.append("  ".join(f"{name}={r[name]:x}" for name in ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")))
    rows.append(f"fcw={r['fcw']:04x} fsw={r['fsw'] | r['ftop'] << 11:04x} mxcsr={r['mxcsr']:08x}")
    stack = [r[f"st_physical{r['ftop'] + n & 7}"] for n in range(8)]
    rows += [f"st{n}={value:020x}" for n, value in enumerate(stack)]
    rows += [f"xmm{n:<2}={r[f'xmm{n}']:032x}" for n in range(16)]
    return "\n".join(rows) + "\n"


def _info_status(target: Target, words: list[str]) -> str:
    """what the machine does"""
    return target.describe() + "\n"


def _physical_address(target: Target, words: list[str]) -> str:
    """ADDRESS: the physical address of a linear one"""
    try:
        address = int(words[0], 0) & (1 << 64) - 1
    except (IndexError, ValueError):
        return "gva2gpa needs an address\n"
    found = paging.translate(target.registers(), target.physical, address)
    return "unmapped\n" if found is None else f"gpa: {found:#x}\n"


def _reset(target: Target, words: list[str]) -> str:
    """resets the machine; it stays stopped"""
    target.reset()
    return ""


def _power_down(target: Target, words: list[str]) -> str:
    """presses the power button"""
    target.press_power_button()
    return ""


def _quit(target: Target, words: list[str]) -> str:
    """ends the machine"""
    target.kill()
    return ""


_help.__doc__ = "this list"
_COMMANDS: dict[str, Callable[[Target, list[str]], str]] = {
    "help": _help,
    "info registers": _info_registers,
    "info status": _info_status,
    "gva2gpa": _physical_address,
    "reset": _reset,
    "system_reset": _reset,
    "system_powerdown": _power_down,
    "quit": _quit,
}


def command(target: Target, line: str) -> str:
    """Carries a line out; its output."""
    words = line.split()
    for count in (2, 1):
        function = _COMMANDS.get(" ".join(words[:count]))
        if function is not None:
            return function(target, words[count:])
    return f"unknown command {line.strip()[:60]!r}; try help\n"
