"""What a machine is made of, as plain validated data: the same names as the options of `ringfence run`.

A `MachineSpec` can be written to and read from JSON (`model_dump_json`, `model_validate_json`); it holds no open files and
no host addresses.  Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from ringfence.backends.display.options import check_display
from ringfence.core.errors import UserError
from ringfence.core.units import MIB, PAGE_BYTES, parse_size
from ringfence.engine import cpuid
from ringfence.machine.checked import Check, Checked, SpecError, choice, flag, many, optional, path, record, text

BoardName = Literal["pc", "isapc", "microvm"]
BootDevice = Literal["cdrom", "disk", "floppy", "net"]
DeviceName = Literal["debug-exit", "testdev", "virtio-rng", "virtio-console", "agent"]
DiskInterface = Literal["ide", "virtio", "nvme"]
DEFAULT_BOOT: tuple[BootDevice, ...] = ("floppy", "cdrom", "disk", "net")
"""What was put into a drive with a door is meant to be started."""
DEFAULT_FIRMWARE = "seabios"
CPU_MODELS: tuple[str, ...] = tuple(cpuid.MODELS)
MAX_FLOPPIES = 2
MAX_CPUS = 16
MIN_MEMORY_BYTES = 4 * MIB
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)


_DISK_OPTIONS = "[,readonly][,snapshot][,format=raw|qcow2][,if=ide|virtio|nvme]"


class DiskSpec(Checked):
    """One disk, or one floppy.  With `snapshot` the file is never written: what the guest writes is forgotten when the machine ends.

    `interface` None leaves the choice to the machine: IDE behind firmware, virtio with a kernel.
    """

    CHECKS: ClassVar[dict[str, Check]] = {
        "path": path,
        "readonly": flag,
        "format": optional(choice("raw", "qcow2")),
        "snapshot": flag,
        "interface": optional(choice(*get_args(DiskInterface))),
    }

    path: Path
    readonly: bool = False
    format: Literal["raw", "qcow2"] | None = None
    snapshot: bool = False
    interface: DiskInterface | None = None

    @classmethod
    def parse(cls, text: str, option: str = "--disk") -> DiskSpec:
        """`FILE[,readonly][,snapshot][,format=raw|qcow2][,if=...]` as the command line takes it; raises UserError."""
        path, *options = text.split(",")
        if not path:
            raise UserError(f"{option} {text!r} names no file.", f"Write {option} FILE{_DISK_OPTIONS}.")
        values: dict[str, Any] = {"path": path}
        for word in options:
            name, _, value = word.partition("=")
            if name in ("readonly", "snapshot") and not value:
                values[name] = True
            elif name == "format" and value in ("raw", "qcow2"):
                values[name] = value
            elif name == "if" and value in ("ide", "virtio", "nvme") and option == "--disk":
                values["interface"] = value
            else:
                known = "readonly, snapshot, format=raw|qcow2" + (" and if=ide|virtio|nvme" if option == "--disk" else "")
                raise UserError(f"{option} {text!r}: {word!r} is not an option of it.", f"Options are {known}.")
        return cls(**values)


def parse_boot(text: str) -> tuple[str, ...]:
    """`cdrom,disk,floppy,net` in the order to be tried; the names are checked by MachineSpec."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _name(value: Any) -> str:
    if not _NAME.fullmatch(text(value)):
        raise ValueError("letters, digits, '.', '_' and '-' are allowed, 40 at most, a letter or digit first")
    return str(value)


def _memory(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except UserError as error:
            raise ValueError(str(error)) from error
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("a number of bytes is needed")
    if value < MIN_MEMORY_BYTES:
        raise ValueError(f"at least {MIN_MEMORY_BYTES >> 20} MiB are needed")
    if value % PAGE_BYTES:
        raise ValueError("memory must be a multiple of 4 KiB")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError("a number of seconds above 0 is needed")
    return float(value)


def _cpus(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_CPUS:
        raise ValueError(f"a number of CPUs from 1 to {MAX_CPUS} is needed")
    return value


def _boot(value: Any) -> tuple[BootDevice, ...]:
    kinds: tuple[BootDevice, ...] = many(choice(*get_args(BootDevice)))(value)
    if not kinds or len(set(kinds)) != len(kinds):
        raise ValueError("boot must name each kind of drive at most once, and one at least")
    return kinds


def _display(value: Any) -> str:
    check_display(text(value) or "none")
    return str(value)


def _parallel(value: Any) -> str:
    kind, colon, file = text(value).partition(":")
    if kind == "file" and colon and file:
        return str(value)
    raise ValueError(f"{value!r} is not file:PATH")


def _serial(value: Any) -> str:
    kind, colon, file = text(value).partition(":")
    if value in ("stdio", "pty", "null", "buffer") or (kind == "file" and colon and file):
        return str(value)
    raise ValueError(f"{value!r} is not one of stdio, pty, file:PATH, null, buffer")


class MachineSpec(Checked):
    """A whole machine.  With `kernel` it is started directly; without, firmware starts it from one of its drives.

    A kernel with `firmware` starts on a whole PC whose screen and BIOS are set up; so does one that has a screen to show, or that
    can be entered in real mode only.
    """

    CHECKS: ClassVar[dict[str, Check]] = {
        "name": optional(_name),
        "kernel": optional(path),
        "initrd": many(path, one=(str, Path)),
        "append": text,
        "disks": many(record(DiskSpec)),
        "cdroms": many(path, one=(str, Path)),
        "floppies": many(record(DiskSpec)),
        "firmware": optional(text),
        "boot": _boot,
        "memory": _memory,
        "engine": choice("auto", "emulate"),
        "board": choice(*get_args(BoardName)),
        "serial": _serial,
        "parallel": optional(_parallel),
        "display": optional(_display),
        "screenshot_at_exit": optional(path),
        "timeout": optional(_seconds),
        "stats": optional(path),
        "devices": many(choice(*get_args(DeviceName))),
        "cpus": _cpus,
        "cpu": choice(*CPU_MODELS),
        "gdb": optional(text),
        "gdb_wait": flag,
    }

    name: str | None = None
    """What the user calls it."""
    kernel: Path | None = None
    initrd: tuple[Path, ...] = ()
    append: str = ""
    disks: tuple[DiskSpec, ...] = ()
    cdroms: tuple[Path, ...] = ()
    floppies: tuple[DiskSpec, ...] = ()
    firmware: str | None = None
    """seabios, or a ROM file; without a kernel seabios is meant."""
    boot: tuple[BootDevice, ...] = DEFAULT_BOOT
    """Kinds of drives in the order firmware tries them."""
    memory: int = 512 * MIB
    """Bytes; a text such as '512M' is understood."""
    engine: Literal["auto", "emulate"] = "auto"
    board: BoardName = "pc"
    serial: str = "buffer"
    """stdio, pty, file:PATH, null, or buffer for Machine.console."""
    parallel: str | None = None
    """file:PATH: what the guest prints at LPT1."""
    display: str | None = None
    """none, terminal or vnc[=ADDR:PORT][,password=TEXT][,password-file=FILE]; unset: behind a kernel there is no screen."""
    screenshot_at_exit: Path | None = None
    """PNG file for the picture that the screen shows at the end."""
    timeout: float | None = None
    """Seconds after which the machine is ended with status 124."""
    stats: Path | None = None
    devices: tuple[DeviceName, ...] = ()
    cpus: int = 1
    """vCPUs, each on a thread of the host."""
    cpu: str = cpuid.MODEL
    """CPU model: what CPUID announces and what is allowed."""
    gdb: str | None = None
    """ADDR:PORT or :PORT at which a GDB stub listens; port 0 takes a free one."""
    gdb_wait: bool = False
    """Stand still before the first instruction until a debugger says continue."""

    def fits(self) -> None:
        if len(self.floppies) > MAX_FLOPPIES:
            raise ValueError(f"a machine has {MAX_FLOPPIES} floppy drives at most")
        if self.kernel is None:
            if self.initrd or self.append:
                raise ValueError("initrd and append belong to a kernel; there is none")
            if not (self.firmware or self.disks or self.cdroms or self.floppies):
                raise ValueError("there is nothing to start: no kernel, no disk, no CD, no floppy")
        if self.board == "microvm":
            old = [name for name in ("firmware", "cdroms", "floppies", "parallel") if getattr(self, name)]
            if old or self.kernel is None:
                raise ValueError(f"the board microvm has no place for {old[0] if old else 'firmware'}; it needs a kernel")
        if self.cpus > 1:
            if self.board == "isapc":
                raise ValueError("the board isapc has one CPU; several need --board pc or microvm")
            if not cpuid.has_apic(self.cpu):
                raise ValueError(f"a {self.cpu} has no local APIC, which several CPUs need; choose a pentium or newer")
        for disk in self.disks:
            interface = self.interface_of(disk)
            if (self.board == "isapc" and interface != "ide") or (self.board == "microvm" and interface != "virtio"):
                raise ValueError(f"the board {self.board} has no place for a disk with if={interface}")

    @property
    def has_screen(self) -> bool:
        """Whether a screen is wanted, be it that nobody looks; behind firmware there is one anyway."""
        return self.display is not None or self.screenshot_at_exit is not None

    def interface_of(self, disk: DiskSpec) -> DiskInterface:
        """How a disk of this machine is attached."""
        if disk.interface is not None:
            return disk.interface
        return "ide" if self.kernel is None or self.board == "isapc" else "virtio"

    @classmethod
    def build(cls, **values: Any) -> MachineSpec:
        """Like the constructor, but a wrong value is a UserError that names the field."""
        try:
            return cls(**values)
        except SpecError as error:
            raise UserError(
                f"{error.where or 'the machine'}: {error.why} (given: {error.given!r}).",
                "See `ringfence run --help` for what can be given.",
            ) from error
