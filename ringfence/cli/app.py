"""The commands and their options, for typer: what is typed, `--help`, and what is told of a wrong word.

Commands are imported when they run: `ringfence --help` loads no engine.  Wrong options end with status 2, as usual on Unix.

Annotations are no texts here: typer would compile each of them at every start.
"""

from typing import Annotated

import typer

from ringfence import __version__

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
    image: Annotated[str | None, typer.Argument(help="A ready image: alpine. Without it, give a kernel, disk, CD or floppy.")] = None,
    command: Annotated[
        list[str] | None, typer.Argument(help="Image only: run this in the guest instead of a shell, behind --.", metavar="-- COMMAND")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Kernel to start without firmware: Linux bzImage, ELF, Multiboot.", metavar="FILE")
    ] = None,
    initrd: Annotated[list[str] | None, typer.Option(help="Initial RAM disk; several are appended to each other.", metavar="FILE")] = None,
    append: Annotated[str, typer.Option(help="Kernel command line (for an image: added to the image's own).", metavar="STR")] = "",
    disk: Annotated[
        list[str] | None,
        typer.Option(
            help="Disk, in order of appearance; IDE behind firmware, virtio with --kernel.",
            metavar="FILE[,readonly][,snapshot][,format=raw|qcow2][,if=ide|virtio|nvme]",
        ),
    ] = None,
    cdrom: Annotated[list[str] | None, typer.Option(help="CD or DVD image in an ATAPI drive; may be repeated.", metavar="FILE")] = None,
    floppy: Annotated[
        list[str] | None, typer.Option(help="Floppy image for drive A, then B.", metavar="FILE[,readonly][,snapshot]")
    ] = None,
    boot: Annotated[
        str | None, typer.Option(help="What firmware starts, in order.", metavar="KIND,...", show_default="floppy,cdrom,disk,net")
    ] = None,
    firmware: Annotated[
        str | None, typer.Option(help="Firmware of a machine without --kernel.", metavar="seabios|FILE", show_default="seabios")
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPUs of the guest, each on a thread of the host.", metavar="N")] = 1,
    cpu: Annotated[str | None, typer.Option(help="CPU model.", metavar="MODEL", show_default="x86-64-v2")] = None,
    memory: Annotated[str, typer.Option(help="RAM of the guest.", metavar="SIZE")] = "512M",
    engine: Annotated[str, typer.Option(help="How to execute the guest.", metavar="auto|emulate")] = "auto",
    board: Annotated[str | None, typer.Option(help="Machine type.", metavar="pc|isapc|microvm", show_default="pc")] = None,
    display: Annotated[
        str | None,
        typer.Option(
            help="Where the screen is shown: in this terminal, or by a VNC server (:1 is port 5901; at this host only unless told).",
            metavar="none|terminal|vnc[=ADDR:PORT][,password=TEXT][,password-file=FILE]",
            show_default="terminal without a kernel or image",
        ),
    ] = None,
    screenshot_at_exit: Annotated[
        str | None, typer.Option("--screenshot-at-exit", help="Write what the screen shows at the end.", metavar="FILE.png")
    ] = None,
    serial: Annotated[
        str | None,
        typer.Option(
            help="Where the serial line goes.", metavar="stdio|file:PATH|pty|null", show_default="stdio; null with --display terminal"
        ),
    ] = None,
    parallel: Annotated[str | None, typer.Option(help="Where the printer port goes.", metavar="file:PATH")] = None,
    timeout: Annotated[float | None, typer.Option(help="End the machine with status 124 after so long.", metavar="SECONDS")] = None,
    stats: Annotated[str | None, typer.Option(help="Write statistics as JSON when the machine ends.", metavar="FILE.json")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Extra device; may be repeated.", metavar="debug-exit|testdev|virtio-rng|virtio-console|agent")
    ] = None,
    hostname: Annotated[str | None, typer.Option(help="Image only: the guest's host name.", show_default="the image's name")] = None,
    overlay: Annotated[
        str | None, typer.Option(help="Image only: keep what the guest writes under this name.", metavar="NAME", show_default="thrown away")
    ] = None,
    init: Annotated[str, typer.Option(help="Image only: a root shell, or the distribution's own start.", metavar="shell|openrc")] = "shell",
    name: Annotated[
        str | None, typer.Option(help="What other commands call the machine.", metavar="NAME", show_default="the image's name")
    ] = None,
    gdb: Annotated[str | None, typer.Option(help="Serve a debugger (gdb: target remote).", metavar="[ADDR]:PORT")] = None,
    gdb_wait: Annotated[
        bool, typer.Option("--gdb-wait", help="Stand still before the first instruction until the debugger says continue.")
    ] = False,
) -> None:
    """Run a machine in this terminal.  Ctrl-] then q leaves it; Ctrl-C goes to the guest.

    With -- COMMAND behind an image, the command runs in the guest with the streams of this one, and its exit status is given back.

    Exit status: 0 the guest switched itself off; 70 it crashed; 124 --timeout; 125 something given or needed is missing or
    wrong; 130 left with Ctrl-] q; with --device debug-exit (value << 1) | 1.
    """
    from ringfence.cli.options import RunOptions
    from ringfence.cli.run import run_machine

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
        gdb=gdb,
        gdb_wait=gdb_wait,
        cdroms=tuple(cdrom or ()),
        floppies=tuple(floppy or ()),
        boot=boot,
        firmware=firmware,
        cpu=cpu,
        cpus=cpus,
        parallel=parallel,
        display=display,
        screenshot_at_exit=screenshot_at_exit,
        name=name,
        command=tuple(command or ()),
    )
    raise typer.Exit(run_machine(options))


@app.command("exec")
def execute(
    machine: Annotated[str, typer.Argument(help="A running machine, by its name or process number.", metavar="NAME|PID")],
    command: Annotated[list[str], typer.Argument(help="What to run in it, behind --.", metavar="-- COMMAND")],
    env: Annotated[list[str] | None, typer.Option(help="A variable for it; may be repeated.", metavar="NAME[=VALUE]")] = None,
    workdir: Annotated[str | None, typer.Option(help="The folder it starts in.", metavar="DIR", show_default="/root")] = None,
) -> None:
    """Run a command in a running machine, with the streams of this one; its exit status is given back.

    Ctrl-C reaches the command.  Exit status: the command's, 128 and the signal's number after a signal; 125 where it cannot be run.
    """
    from ringfence.cli.guest_commands import execute as execute_in_guest

    raise typer.Exit(execute_in_guest(machine, command, env or (), workdir))


@app.command()
def cp(
    source: Annotated[str, typer.Argument(help="What to copy: a path here, or NAME:PATH in a machine.", metavar="[NAME:]SOURCE")],
    target: Annotated[str, typer.Argument(help="Where to: a folder that exists, or the copy's own name.", metavar="[NAME:]TARGET")],
) -> None:
    """Copy a file or folder into a running machine or out of it, with modes, times and links."""
    from ringfence.cli.copying import copy

    copy(source, target)


@app.command()
def screenshot(
    file: Annotated[str, typer.Argument(help="PNG file to write; - for standard output.", metavar="FILE.png")] = "",
    machine: Annotated[
        str | None, typer.Option(help="Which machine, by its --name or process number.", metavar="NAME|PID", show_default="the only one")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the text on the screen instead of a picture.")] = False,
) -> None:
    """Take a picture of a running machine's screen, or read its text."""
    from ringfence.cli.screenshot import print_text, take

    if not text and not file:
        raise typer.BadParameter("say which file to write, or --text")
    if text:
        print_text(machine)
    if file:
        take(machine, file)


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Tell which engines work here and why not, the state of the cache, and versions."""
    from ringfence.cli.doctor import print_report

    print_report(as_json=json)
