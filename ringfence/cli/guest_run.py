"""`ringfence run IMAGE -- COMMAND`: a machine for one command, whose streams and exit status are this process's."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import closing

from ringfence.cli import run
from ringfence.cli.guest_commands import passing_signals, pump_input, write_all
from ringfence.cli.options import RunOptions
from ringfence.cli.progress import ProgressLine
from ringfence.core.errors import UserError
from ringfence.machine import control
from ringfence.machine.console import Console
from ringfence.machine.guest_process import GuestGone, GuestProcess, OutputStream
from ringfence.machine.machine import Machine, MachineBusy
from ringfence.machine.stats import write_stats
from ringfence.machine.status import Ending, ExitStatus

SWITCH_OFF_S = 30.0
LOST_S = 3.0
_SHOWN_BYTES = 2000  # of the console, where the guest did not come up


def run_command(options: RunOptions) -> int:
    """Raises UserError where the command could not be run."""
    spec = run.make_spec(options if options.serial else options.replace(serial="null"))
    console = None if options.serial else Console()
    with ProgressLine() as progress:
        machine = Machine(spec, console=console, on_progress=progress.report)
    gc.freeze()
    gc.enable()
    with machine:
        machine.start()
        with closing(control.ControlSocket(machine)):
            status = _run(machine, options)
            if status is not None:
                machine.switch_off()
                _wait_for_end(machine)
        if spec.stats is not None:
            write_stats(spec.stats, machine.stats())
        if status is not None:
            return status
        ended = _end(machine)
        if ended.ending is Ending.TIMEOUT:
            print(f"ringfence: {ended.report()}", file=sys.stderr)
            return ended.code
        seen = console.transcript[-_SHOWN_BYTES:].decode(errors="replace").strip() if console is not None else ""
        raise UserError(
            f"The guest ended before the command did: {ended.report()}." + (f" Its console:\n{seen}" if seen else ""),
            "Run the image without a command to see what it does.",
        )


def _run(machine: Machine, options: RunOptions) -> int | None:
    """The command's exit status; None where the guest was gone before."""
    wanted: list[int] = []
    running: list[GuestProcess] = []

    def signalled(number: int) -> None:
        wanted.append(number)
        for process in running:
            process.kill(number)
        if not running:
            machine.stop(128 + number, "ended by a signal before the command began")

    with passing_signals(signalled):
        try:
            process = machine.popen(options.command)
        except GuestGone:
            return 128 + wanted[0] if wanted else None
        running.append(process)
        with process:
            pump_input(process.write, process.close_input)
            errors = threading.Thread(target=_print_errors, args=(process.stderr,), daemon=True)
            errors.start()
            _print(1, process.stdout)
            errors.join()
            try:
                return process.wait()
            except GuestGone:
                return None


def _end(machine: Machine) -> ExitStatus:
    """Of a machine whose agent is gone: as a rule it is about to end by itself."""
    try:
        return machine.wait(LOST_S)
    except MachineBusy:
        machine.stop(reason="its agent ended, and it was stopped")
        return machine.wait(SWITCH_OFF_S)


def _print(descriptor: int, stream: OutputStream) -> None:
    for piece in stream:
        write_all(descriptor, piece)


def _print_errors(stream: OutputStream) -> None:
    try:
        _print(2, stream)
    except OSError:  # nobody reads them
        stream.read()


def _wait_for_end(machine: Machine) -> None:
    try:
        machine.wait(SWITCH_OFF_S)
    except MachineBusy:
        print(f"ringfence: the guest did not switch itself off within {SWITCH_OFF_S:g} s; it was stopped", file=sys.stderr)
        machine.stop()
        machine.wait(SWITCH_OFF_S)
