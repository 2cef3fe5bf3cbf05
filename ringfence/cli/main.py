"""The command `ringfence`.

A UserError becomes a message (what happened, what to do) and exit status 125.  A plain `ringfence run` or `exec` is read here; every other
command, a question for help or completion, and all that needs to be told of wrong words is typer's (`app`), which takes as long to
load as a machine does to start.
"""

from __future__ import annotations

import gc
import os
import sys

from ringfence.cli.options import ExecOptions, RunOptions, read_exec, read_options
from ringfence.core import bundle
from ringfence.core.errors import UserError

USER_ERROR_STATUS = 125
_COMPLETION = "_RINGFENCE_COMPLETE"  # how a shell asks typer's library for completions


def main() -> None:
    """Entry point of the console script."""
    gc.disable()  # what a start makes stays; it is switched on again when the machine has been made
    try:
        options = _plain_run(sys.argv[1:])
        execute = _plain_exec(sys.argv[1:])
        if execute is not None:
            from ringfence.cli.guest_commands import execute as execute_in_guest

            sys.exit(execute_in_guest(execute.machine, execute.command, execute.environment, execute.folder))
        if options is None:
            from ringfence.cli.app import app

            app()
        else:
            modules = bundle.install()
            from ringfence.cli.run import run_machine

            status = run_machine(options)
            bundle.keep(modules)
            sys.exit(status)
    except UserError as error:
        print(f"ringfence: {error.cause}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except BrokenPipeError:
        sys.exit(141)  # 128 + SIGPIPE: whoever read our output has gone
    except KeyboardInterrupt:
        print("Aborted.", file=sys.stderr)
        sys.exit(130)  # 128 + SIGINT, before the machine took the signal over
    finally:
        gc.enable()  # for whoever called this as a function


def _plain_run(arguments: list[str]) -> RunOptions | None:
    if arguments[:1] != ["run"] or _COMPLETION in os.environ:
        return None
    return read_options(arguments[1:])


def _plain_exec(arguments: list[str]) -> ExecOptions | None:
    if arguments[:1] != ["exec"] or _COMPLETION in os.environ:
        return None
    return read_exec(arguments[1:])
