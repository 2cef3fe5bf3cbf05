"""Ringfence: a virtual machine monitor in Python.

    from ringfence import Machine, MachineSpec

    with Machine(MachineSpec(kernel="vmlinuz", initrd=["initrd.gz"], append="console=ttyS0")) as machine:
        machine.start()
        machine.console.wait_for(b"login:", timeout_s=60)
        machine.console.send(b"root\\n")

The names load on first use: `import ringfence` alone costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringfence.machine.console import Console
    from ringfence.machine.fonts import Font
    from ringfence.machine.guest_process import CommandTimeout, GuestGone, GuestProcess, NoAgent, Result
    from ringfence.machine.machine import Machine
    from ringfence.machine.screen import ScreenTimeout
    from ringfence.machine.spec import DiskSpec, MachineSpec
    from ringfence.machine.status import ExitStatus

__version__ = "0.1.0"
__all__ = [
    "CommandTimeout",
    "Console",
    "DiskSpec",
    "ExitStatus",
    "Font",
    "GuestGone",
    "GuestProcess",
    "Machine",
    "MachineSpec",
    "NoAgent",
    "Result",
    "ScreenTimeout",
    "__version__",
]

_HOME = {
    "CommandTimeout": "guest_process",
    "GuestGone": "guest_process",
    "GuestProcess": "guest_process",
    "NoAgent": "guest_process",
    "Result": "guest_process",
    "Console": "console",
    "DiskSpec": "spec",
    "ExitStatus": "status",
    "Font": "fonts",
    "Machine": "machine",
    "MachineSpec": "spec",
    "ScreenTimeout": "screen",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ringfence.machine.{_HOME[name]}"), name)
