"""`ringfence run`: options to a spec, the machine in this terminal, its end to an exit status."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ringfence.cli.options import RunOptions
from ringfence.cli.progress import ProgressLine
from ringfence.cli.terminal_guard import TerminalGuard
from ringfence.core.errors import UserError
from ringfence.core.late import LateModule
from ringfence.machine.machine import Machine
from ringfence.machine.spec import DiskSpec, MachineSpec, parse_boot
from ringfence.machine.stats import write_stats
from ringfence.machine.status import Ending, ExitStatus

if TYPE_CHECKING:
    import shutil

    from ringfence.cli import guest_run, screenshot
    from ringfence.images import alpine
    from ringfence.machine import control
else:  # in terminals; at the end; where an image is named; once the guest runs
    shutil = LateModule("shutil")
    screenshot = LateModule("ringfence.cli.screenshot")
    guest_run = LateModule("ringfence.cli.guest_run")
    alpine = LateModule("ringfence.images.alpine")
    control = LateModule("ringfence.machine.control")

IMAGES = ("alpine",)
INITS = ("shell", "openrc")
_SIGNAL_STATUS = 128


def run_machine(options: RunOptions) -> int:
    """Runs the machine to its end and returns the command's exit status; raises UserError."""
    if options.command:
        return guest_run.run_command(options)
    spec = make_spec(options)
    for option, path in (("--stats", spec.stats), ("--screenshot-at-exit", spec.screenshot_at_exit)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"{option}: there is no folder {path.absolute().parent}.", "Make it first.")
    # The guard comes first: it remembers the terminal's settings, and forks while there is one thread only.
    with TerminalGuard():
        with ProgressLine() as progress:
            machine = Machine(spec, on_progress=progress.report)
        gc.freeze()
        gc.enable()
        with machine, _signals(machine), ExitStack() as resources:
            if spec.serial == "stdio" and sys.stdin.isatty():
                machine.resize_console(*shutil.get_terminal_size())
            elif spec.serial == "pty":
                print(f"ringfence: the serial line is at {machine.serial_path}", file=sys.stderr, flush=True)
            if machine.debugger is not None:
                print(f"ringfence: gdb is served at {machine.debugger.server.address}", file=sys.stderr, flush=True)
            if machine.vnc_address is not None:
                print(f"ringfence: the screen is served at {_shown(machine.vnc_address)} (VNC)", file=sys.stderr, flush=True)
            machine.start()
            resources.enter_context(closing(control.ControlSocket(machine)))
            status = machine.wait()
            figures = machine.stats() if spec.stats is not None else None
            if spec.screenshot_at_exit is not None:
                screenshot.save_image(machine.screen(), spec.screenshot_at_exit)
    if spec.stats is not None and figures is not None:
        write_stats(spec.stats, figures)
    _tell(status)
    return status.code


def make_spec(options: RunOptions) -> MachineSpec:
    """The machine that the options describe; raises UserError for what cannot be."""
    options = _choose_ends(options)
    values: dict[str, Any] = {
        "append": options.append,
        "disks": tuple(DiskSpec.parse(text) for text in options.disks),
        "memory": options.memory,
        "cpus": options.cpus,
        "engine": options.engine,
        "board": options.board or "pc",
        "serial": options.serial,
        "timeout": options.timeout,
        "stats": options.stats,
        "devices": options.devices,
        "gdb": options.gdb or (":1234" if options.gdb_wait else None),
        "gdb_wait": options.gdb_wait,
        "cdroms": options.cdroms,
        "floppies": tuple(DiskSpec.parse(text, "--floppy") for text in options.floppies),
        "parallel": options.parallel,
        "display": options.display,
        "screenshot_at_exit": options.screenshot_at_exit,
        "name": options.name or options.image,
        "firmware": options.firmware,
    }
    if options.boot is not None:
        values["boot"] = parse_boot(options.boot)
    if options.cpu is not None:
        values["cpu"] = options.cpu
    if options.image is not None:
        values.update(_image_values(options))
    else:
        if not (options.kernel or options.firmware or options.disks or options.cdroms or options.floppies):
            raise UserError(
                "There is nothing to run.",
                f"Name an image ({', '.join(IMAGES)}), a kernel (--kernel FILE), or what firmware can start (--disk, --cdrom, --floppy).",
            )
        if options.command:
            raise UserError("A command needs a ready image, which has our agent in it.", f"Images are: {', '.join(IMAGES)}.")
        given = [name for name in ("hostname", "overlay") if getattr(options, name) is not None]
        if given or options.init != "shell":
            raise UserError(f"--{given[0] if given else 'init'} belongs to a ready image, not to a machine of one's own.", "Leave it out.")
        values.update(kernel=options.kernel, initrd=options.initrd)
    return MachineSpec.build(**values)


def _choose_ends(options: RunOptions) -> RunOptions:
    """What is in this terminal: the screen of a machine that firmware starts, else the serial line; never both."""
    display, serial = options.display, options.serial
    if display is None and serial is None and options.kernel is None and options.image is None and _in_terminal():
        display = "terminal"
    if display == "terminal" and serial == "stdio":
        raise UserError("The screen and the serial line cannot both be in this terminal.", "Use --serial pty, file:PATH or null with it.")
    return options.replace(display=display, serial=serial or ("null" if display == "terminal" else "stdio"))


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
        init="agent" if options.command else "openrc" if options.init == "openrc" else "shell",
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
        "devices": (*options.devices, *(() if "agent" in options.devices else ("agent",))),
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


def _in_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tell(status: ExitStatus) -> None:
    if status.ending is not Ending.POWER_OFF and status.ending is not Ending.DEBUG_EXIT:
        print(f"ringfence: {status.report()}", file=sys.stderr)
