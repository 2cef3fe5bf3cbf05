"""The command `ringfence`.

Commands are imported when they run: `ringfence --help` loads no engine.  A UserError becomes a message (what happened, what
to do) and exit status 125; wrong options end with status 2, as usual on Unix.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ringfence import __version__
from ringfence.core.errors import UserError

USER_ERROR_STATUS = 125

app = typer.Typer(
    help="Run whole operating systems, with or without hardware virtualisation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ringfence {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    image: Annotated[str | None, typer.Argument(help="A ready image: alpine. Without it, give --kernel.")] = None,
    kernel: Annotated[str | None, typer.Option(help="Linux bzImage or ELF kernel.", metavar="FILE")] = None,
    initrd: Annotated[list[str] | None, typer.Option(help="Initial RAM disk; several are appended to each other.", metavar="FILE")] = None,
    append: Annotated[str, typer.Option(help="Kernel command line (for an image: added to the image's own).", metavar="STR")] = "",
    disk: Annotated[
        list[str] | None, typer.Option(help="Disk, in order of appearance.", metavar="FILE[,readonly][,snapshot][,format=raw|qcow2]")
    ] = None,
    memory: Annotated[str, typer.Option(help="RAM of the guest.", metavar="SIZE")] = "512M",
    engine: Annotated[str, typer.Option(help="How to execute the guest.", metavar="auto|emulate")] = "auto",
    board: Annotated[str | None, typer.Option(help="Machine type.", metavar="pc|microvm", show_default="pc")] = None,
    serial: Annotated[str, typer.Option(help="Where the serial line goes.", metavar="stdio|file:PATH|pty|null")] = "stdio",
    timeout: Annotated[float | None, typer.Option(help="End the machine with status 124 after so long.", metavar="SECONDS")] = None,
    stats: Annotated[str | None, typer.Option(help="Write statistics as JSON when the machine ends.", metavar="FILE.json")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Extra device; may be repeated.", metavar="debug-exit|virtio-rng|virtio-console")
    ] = None,
    hostname: Annotated[str | None, typer.Option(help="Image only: the guest's host name.", show_default="the image's name")] = None,
    overlay: Annotated[
        str | None, typer.Option(help="Image only: keep what the guest writes under this name.", metavar="NAME", show_default="thrown away")
    ] = None,
    init: Annotated[str, typer.Option(help="Image only: a root shell, or the distribution's own start.", metavar="shell|openrc")] = "shell",
) -> None:
    """Run a machine in this terminal.  Ctrl-] then q leaves it; Ctrl-C goes to the guest.

    Exit status: 0 the guest switched itself off; 70 it crashed; 124 --timeout; 125 something given or needed is missing or
    wrong; 130 left with Ctrl-] q; with --device debug-exit (value << 1) | 1.
    """
    from ringfence.cli.run import RunOptions, run_machine

    options = RunOptions(
        image=image,
        kernel=kernel,
        initrd=tuple(initrd or ()),
        append=append,
        disks=tuple(disk or ()),
        memory=memory,
        engine=engine,
        board=board,
        serial=serial,
        timeout=timeout,
        stats=stats,
        devices=tuple(device or ()),
        hostname=hostname,
        overlay=overlay,
        init=init,
    )
    raise typer.Exit(run_machine(options))


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Tell which engines work here and why not, the state of the cache, and versions."""
    from ringfence.cli.doctor import print_report

    print_report(as_json=json)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except UserError as error:
        print(f"ringfence: {error.cause}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except BrokenPipeError:
        sys.exit(141)  # 128 + SIGPIPE: whoever read our output has gone
