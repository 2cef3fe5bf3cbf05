"""What `ringfence run` and `ringfence exec` were asked for, and the quick way to read it.

`read_options` and `read_exec` understand plain words only, `--name value`, `--name=value`, a flag, a name, a command behind `--`, and say
None to everything else: typer then reads the same words again, by the declarations in `app`, and explains what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ringfence.core.record import Record


class ExecOptions(NamedTuple):
    """Of `ringfence exec`."""

    machine: str
    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    folder: str | None = None


class RunOptions(Record):
    """What was typed, unchecked."""

    image: str | None = None
    kernel: str | None = None
    initrd: tuple[str, ...] = ()
    append: str = ""
    disks: tuple[str, ...] = ()
    memory: str = "512M"
    engine: str = "auto"
    board: str | None = None
    serial: str | None = None
    timeout: float | None = None
    stats: str | None = None
    devices: tuple[str, ...] = ()
    hostname: str | None = None
    overlay: str | None = None
    init: str = "shell"
    gdb: str | None = None
    gdb_wait: bool = False
    cdroms: tuple[str, ...] = ()
    floppies: tuple[str, ...] = ()
    boot: str | None = None
    firmware: str | None = None
    cpu: str | None = None
    cpus: int = 1
    parallel: str | None = None
    display: str | None = None
    screenshot_at_exit: str | None = None
    name: str | None = None
    command: tuple[str, ...] = ()
    """What is run in the guest; behind `--`."""


_SINGULAR = {"disks": "disk", "cdroms": "cdrom", "floppies": "floppy", "devices": "device"}
_FIELD_OF = {
    f"--{_SINGULAR.get(field, field).replace('_', '-')}": field for field in RunOptions.FIELDS if field not in ("image", "command")
}
_NUMBERS: dict[str, Callable[[str], Any]] = {"int": int, "float | None": float}


def read_options(words: Sequence[str]) -> RunOptions | None:
    """The options that these words mean; None where typer has to look at them."""
    given: dict[str, Any] = {}
    left = list(reversed(words))
    while left:
        word = left.pop()
        if word == "--":
            if "image" not in given or not left:
                return None
            given["command"] = tuple(reversed(left))
            break
        if not word.startswith("-"):
            if "image" in given:
                return None
            given["image"] = word
            continue
        option, equals, value = word.partition("=")
        field = _FIELD_OF.get(option)
        if field is None:
            return None
        default = RunOptions.FIELDS[field]
        if default is False:
            if equals:
                return None
            given[field] = True
            continue
        if not equals:
            if not left or left[-1].startswith("-"):
                return None
            value = left.pop()
        if default == ():
            given[field] = (*given.get(field, ()), value)
        elif (number := _NUMBERS.get(RunOptions.__annotations__[field])) is not None:
            try:
                given[field] = number(value)
            except ValueError:
                return None
        else:
            given[field] = value
    return RunOptions(**given)


def read_exec(words: Sequence[str]) -> ExecOptions | None:
    """`NAME [--env X=Y] [--workdir DIR] -- COMMAND …`; None where typer has to look at it."""
    if "--" not in words[1:] or words[0].startswith("-") or not words[0]:
        return None
    split = list(words).index("--")
    own, command = list(words[1:split]), tuple(words[split + 1 :])
    environment, folder = [], None
    while own:
        option = own.pop(0)
        if option not in ("--env", "--workdir") or not own:
            return None
        if option == "--env":
            environment.append(own.pop(0))
        else:
            folder = own.pop(0)
    return ExecOptions(words[0], command, tuple(environment), folder) if command else None
