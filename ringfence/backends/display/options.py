"""What `--display` takes: where a guest's screen is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ringfence.core.errors import UserError
from ringfence.core.record import Record

FIRST_PORT = 5900
LOOPBACK = "127.0.0.1"
FORMS = "none, terminal or vnc[=ADDR:PORT][,password=TEXT][,password-file=FILE]"
PASSWORD_BYTES = 8
_LAST_DISPLAY = 99


class VncOptions(Record):
    """Where a VNC server listens.  A password counts up to its eighth byte; None lets everybody in."""

    host: str = LOOPBACK
    port: int = FIRST_PORT
    password: str | None = None


class DisplayOptions(Record):
    kind: Literal["none", "terminal", "vnc"] = "none"
    vnc: VncOptions = VncOptions()


def check_display(text: str) -> None:
    """Raises ValueError for what `parse_display` would not take; looks at no file."""
    try:
        _parse(text, lambda path: path)
    except UserError as error:
        raise ValueError(str(error)) from error


def parse_display(text: str) -> DisplayOptions:
    """`none`, `terminal`, `vnc`, `vnc=:1` (display 1: port 5901), `vnc=127.0.0.1:5901`, `vnc,password=…`; raises UserError."""
    return _parse(text, _read_password)


def _parse(text: str, read_password: Callable[[str], str]) -> DisplayOptions:
    head, *options = text.split(",")
    kind, equals, where = head.partition("=")
    if kind in ("none", "terminal") and not equals and not options:
        return DisplayOptions("none" if kind == "none" else "terminal")
    if kind != "vnc" or (equals and not where):
        raise UserError(f"--display {text!r} is not known.", f"Use {FORMS}.")
    host, port = _address(text, where) if where else (LOOPBACK, FIRST_PORT)
    password = None
    for option in options:
        name, _, value = option.partition("=")
        if password is not None or name not in ("password", "password-file") or not value:
            raise UserError(f"--display {text!r}: {option!r} is not understood.", f"Use {FORMS}.")
        password = value if name == "password" else read_password(value)
    return DisplayOptions("vnc", VncOptions(host, port, password))


def _address(text: str, where: str) -> tuple[str, int]:
    """`:1` and `HOST:1` are display numbers, as VNC's users know them; from 100 on they are ports."""
    host, colon, number = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # IPv6 addresses hold colons
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 5 or int(number) > 65535:
        raise UserError(f"--display {text!r}: {where!r} is no address and port.", "Write vnc=:1 or vnc=127.0.0.1:5901.")
    port = int(number)
    return host or LOOPBACK, port + FIRST_PORT if port <= _LAST_DISPLAY else port


def _read_password(path: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The password file {path} cannot be read: {error}.", "Name a file whose first line is the password.") from error
    if not lines or not lines[0]:
        raise UserError(f"The password file {path} is empty.", "Write the password into its first line.")
    return lines[0]
