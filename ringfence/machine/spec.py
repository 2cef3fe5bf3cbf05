"""What a machine is made of, as plain validated data: the same names as the options of `ringfence run`.

A `MachineSpec` can be written to and read from JSON (`model_dump_json`, `model_validate_json`); it holds no open files and
no host addresses.  Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ringfence.core.errors import UserError
from ringfence.core.units import MIB, PAGE_BYTES, parse_size

CpuModelName = Literal["x86-64-v2"]
DeviceName = Literal["debug-exit", "virtio-rng", "virtio-console"]
MIN_MEMORY_BYTES = 4 * MIB


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DiskSpec(_Spec):
    """One disk.  With `snapshot` the file is never written: what the guest writes is forgotten when the machine ends."""

    path: Path
    readonly: bool = False
    format: Literal["raw", "qcow2"] | None = None
    snapshot: bool = False

    @classmethod
    def parse(cls, text: str) -> DiskSpec:
        """`FILE[,readonly][,snapshot][,format=raw|qcow2]` as the command line takes it; raises UserError."""
        path, *options = text.split(",")
        if not path:
            raise UserError(f"--disk {text!r} names no file.", "Write --disk FILE[,readonly][,snapshot][,format=raw|qcow2].")
        values: dict[str, Any] = {"path": path}
        for option in options:
            name, _, value = option.partition("=")
            if name in ("readonly", "snapshot") and not value:
                values[name] = True
            elif name == "format" and value in ("raw", "qcow2"):
                values[name] = value
            else:
                raise UserError(
                    f"--disk {text!r}: {option!r} is not an option of a disk.", "Options are readonly, snapshot and format=raw|qcow2."
                )
        return cls(**values)


class MachineSpec(_Spec):
    """A whole machine."""

    kernel: Path
    initrd: tuple[Path, ...] = ()
    append: str = ""
    disks: tuple[DiskSpec, ...] = ()
    memory: int = Field(default=512 * MIB, ge=MIN_MEMORY_BYTES, description="bytes; a text such as '512M' is understood")
    engine: Literal["auto", "emulate"] = "auto"
    board: Literal["pc", "microvm"] = "pc"
    serial: str = Field(default="buffer", description="stdio, pty, file:PATH, null, or buffer for Machine.console")
    timeout: float | None = Field(default=None, gt=0, description="seconds after which the machine is ended with status 124")
    stats: Path | None = None
    devices: tuple[DeviceName, ...] = ()
    cpus: Literal[1] = 1
    cpu: CpuModelName = "x86-64-v2"

    @field_validator("memory", mode="before")
    @classmethod
    def _memory_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse_size(value)
        except UserError as error:
            raise ValueError(str(error)) from error

    @field_validator("memory")
    @classmethod
    def _whole_pages(cls, value: int) -> int:
        if value % PAGE_BYTES:
            raise ValueError("memory must be a multiple of 4 KiB")
        return value

    @field_validator("initrd", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("serial")
    @classmethod
    def _known_serial(cls, value: str) -> str:
        kind, colon, path = value.partition(":")
        if value in ("stdio", "pty", "null", "buffer") or (kind == "file" and colon and path):
            return value
        raise ValueError(f"{value!r} is not one of stdio, pty, file:PATH, null, buffer")

    @classmethod
    def build(cls, **values: Any) -> MachineSpec:
        """Like the constructor, but a wrong value is a UserError that names the field."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the machine"
            raise UserError(
                f"{where}: {first['msg'].removeprefix('Value error, ')} (given: {first['input']!r}).",
                "See `ringfence run --help` for what can be given.",
            ) from error
