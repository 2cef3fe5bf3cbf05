"""Opens what a spec names on the host: drives, and the other ends of the serial line and the printer port."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ringfence.backends.api import Block, Char, Screen
from ringfence.backends.block.open import open_block, temporary_overlay
from ringfence.backends.char.file import FileChar
from ringfence.backends.char.null import NullChar
from ringfence.backends.char.pty import PtyChar
from ringfence.backends.char.stdio import StdioConsole
from ringfence.backends.display.api import Display
from ringfence.backends.display.options import parse_display
from ringfence.core.errors import UserError
from ringfence.core.late import LateModule
from ringfence.machine.boards.drives import Drive
from ringfence.machine.console import Console
from ringfence.machine.spec import DiskSpec, MachineSpec

if TYPE_CHECKING:
    from ringfence.backends.display import terminal, vnc
else:  # most machines have no display
    terminal = LateModule("ringfence.backends.display.terminal")
    vnc = LateModule("ringfence.backends.display.vnc")


def open_disk(disk: DiskSpec) -> Block:
    """Raises UserError when there is no such image or it is damaged."""
    if disk.snapshot:
        return temporary_overlay(disk.path, disk.format)
    return open_block(disk.path, readonly=disk.readonly, format=disk.format)


def open_drives(spec: MachineSpec) -> Iterator[Drive]:
    """Everything with a medium, one after the other: disks, CDs, floppies.  Raises UserError at the first that cannot be had."""
    for disk in spec.disks:
        yield Drive(open_disk(disk), "disk", spec.interface_of(disk))
    for path in spec.cdroms:
        yield Drive(open_block(path, readonly=True, format="raw"), "cdrom", "ide")
    for disk in spec.floppies:
        yield Drive(open_disk(disk), "floppy", "floppy")


def open_printer(name: str) -> Char:
    """What is behind the parallel port; `name` is `file:PATH`."""
    return FileChar(name.partition(":")[2])


def open_serial(name: str, on_quit: Callable[[], None]) -> Char:
    """The `Char` that a MachineSpec's `serial` names; `on_quit` is called when the user leaves the terminal."""
    kind, _, path = name.partition(":")
    match kind:
        case "buffer":
            return Console()
        case "null":
            return NullChar()
        case "stdio":
            return StdioConsole(on_quit)
        case "pty":
            return PtyChar()
        case "file":
            return FileChar(path)
    raise UserError(f"{name!r} is not a place for the serial line.", "Use stdio, pty, file:PATH, null or buffer.")


def open_display(spec: MachineSpec, screen: Screen | None, on_quit: Callable[[], None]) -> Display | None:
    """What shows the screen; `on_quit` is called when the user leaves the terminal.  Raises UserError when there is nothing to show."""
    display = parse_display(spec.display or "none")
    if screen is None and (display.kind != "none" or spec.screenshot_at_exit is not None):
        raise UserError(f"The board {spec.board} has no screen.", "Leave --display and --screenshot-at-exit out, or use --board pc.")
    match display.kind:
        case "vnc":
            return vnc.VncServer(display.vnc, f"Ringfence {spec.name}" if spec.name else "Ringfence")
        case "terminal":
            return terminal.TerminalDisplay(on_quit, many_colors=os.environ.get("COLORTERM") in ("truecolor", "24bit"))
        case _:
            return None
