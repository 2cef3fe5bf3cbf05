"""`ringfence run`: options to a spec, the machine in this terminal, its end to an exit status."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ringfence.cli.progress import ProgressLine
from ringfence.cli.terminal_guard import TerminalGuard
from ringfence.core.errors import UserError
from ringfence.images import alpine
from ringfence.machine.machine import Machine
from ringfence.machine.spec import DiskSpec, MachineSpec
from ringfence.machine.stats import write_stats
from ringfence.machine.status import Ending, ExitStatus

IMAGES = ("alpine",)
INITS = ("shell", "openrc")
_SIGNAL_STATUS = 128


@dataclass(frozen=True)
class RunOptions:
    """What was typed, unchecked."""

    image: str | None
    kernel: str | None
    initrd: tuple[str, ...]
    append: str
    disks: tuple[str, ...]
    memory: str
    engine: str
    board: str | None
    serial: str
    timeout: float | None
    stats: str | None
    devices: tuple[str, ...]
    hostname: str | None
    overlay: str | None
    init: str


def run_machine(options: RunOptions) -> int:
    """Runs the machine to its end and returns the command's exit status; raises UserError."""
    spec = make_spec(options)
    if spec.stats is not None and not spec.stats.absolute().parent.is_dir():
        raise UserError(f"--stats: there is no folder {spec.stats.absolute().parent}.", "Make it first.")
    # The guard comes first: it remembers the terminal's settings, and forks while there is one thread only.
    with TerminalGuard():
        with ProgressLine() as progress:
            machine = Machine(spec, on_progress=progress.report)
        with machine, _signals(machine):
            if spec.serial == "stdio" and sys.stdin.isatty():
                machine.resize_console(*shutil.get_terminal_size())
            elif spec.serial == "pty":
                print(f"ringfence: the serial line is at {machine.serial_path}", file=sys.stderr, flush=True)
            status = machine.run()
            figures = machine.stats() if spec.stats is not None else None
    if spec.stats is not None and figures is not None:
        write_stats(spec.stats, figures)
    _tell(status)
    return status.code


def make_spec(options: RunOptions) -> MachineSpec:
    """The machine that the options describe; raises UserError for what cannot be."""
    values: dict[str, Any] = {
        "append": options.append,
        "disks": tuple(DiskSpec.parse(text) for text in options.disks),
        "memory": options.memory,
        "engine": options.engine,
        "board": options.board or "pc",
        "serial": options.serial,
        "timeout": options.timeout,
        "stats": options.stats,
        "devices": options.devices,
    }
    if options.image is not None:
        values.update(_image_values(options))
    elif options.kernel is None:
        raise UserError("There is nothing to run.", f"Name an image ({', '.join(IMAGES)}) or a kernel with --kernel FILE.")
    else:
        given = [name for name in ("hostname", "overlay") if getattr(options, name) is not None]
        if given or options.init != "shell":
            raise UserError(f"--{given[0] if given else 'init'} belongs to a ready image, not to --kernel.", "Use --append instead.")
        values.update(kernel=options.kernel, initrd=options.initrd)
    return MachineSpec.build(**values)


def _image_values(options: RunOptions) -> dict[str, Any]:
    if options.image not in IMAGES:
        raise UserError(f"There is no image {options.image!r}.", f"Images are: {', '.join(IMAGES)}. A kernel file goes to --kernel FILE.")
    if options.kernel is not None or options.initrd:
        raise UserError(f"The image {options.image} brings its own kernel and initrd.", "Leave --kernel and --initrd out.")
    if options.init not in INITS:
        raise UserError(f"--init {options.init!r} is not known.", f"Use one of: {', '.join(INITS)}.")
    terminal = sys.stdout.isatty() and options.serial == "stdio"
    window = shutil.get_terminal_size()
    recipe = alpine.recipe(
        init="openrc" if options.init == "openrc" else "shell",
        hostname=options.hostname or options.image,
        overlay=options.overlay,
        terminal=os.environ.get("TERM") if terminal else None,
        size=(window.columns, window.lines) if terminal else None,
        append=options.append,
    )
    root = DiskSpec(path=recipe.disk, format="qcow2", snapshot=recipe.snapshot)
    return {
        "kernel": recipe.kernel,
        "initrd": recipe.initrd,
        "append": recipe.append,
        "disks": (root, *(DiskSpec.parse(text) for text in options.disks)),
        "board": options.board or recipe.board,
    }


@contextmanager
def _signals(machine: Machine) -> Iterator[None]:
    """Signals that end a process end the machine instead, so that terminal and disks are left in order."""

    def end(number: int, frame: FrameType | None) -> None:
        machine.stop(_SIGNAL_STATUS + number, f"ended by {signal.Signals(number).name}")

    def resized(number: int, frame: FrameType | None) -> None:
        machine.resize_console(*shutil.get_terminal_size())

    handlers: dict[signal.Signals, Any] = {
        signal.SIGTERM: end,
        signal.SIGHUP: end,
        signal.SIGINT: end,
        signal.SIGWINCH: resized,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(status: ExitStatus) -> None:
    if status.ending is not Ending.POWER_OFF and status.ending is not Ending.DEBUG_EXIT:
        print(f"ringfence: {status.report()}", file=sys.stderr)
