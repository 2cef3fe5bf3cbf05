"""Floppy disks and drives: what is recorded where, and what a drive's head finds.

A medium is known by its image's size; images hold 512-byte sectors by cylinder, head, sector, as ECMA-125 (1.44 MB), ECMA-99
(1.2 MB) and their relatives number them, from sector 1.  Other layouts of a track (other sector sizes, numbers or deleted marks)
cannot be kept by such an image.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from ringfence.backends.api import Block
from ringfence.core.errors import RingfenceError, UserError
from ringfence.core.trace import tracer
from ringfence.core.units import KIB

trace = tracer("floppy")

SECTOR_BYTES = 512
# Codes of the data rate select registers (82077AA, table 2-6), for MFM
RATE_500, RATE_300, RATE_250, RATE_1000 = 0, 1, 2, 3


class Density(Enum):
    """What a medium is made for."""

    DD_525 = "5.25 inch, double density"
    HD_525 = "5.25 inch, high density"
    DD_35 = "3.5 inch, double density"
    HD_35 = "3.5 inch, high density"
    ED_35 = "3.5 inch, extra-high density"


class Geometry(NamedTuple):
    cylinders: int
    heads: int
    sectors: int
    density: Density

    @property
    def size_bytes(self) -> int:
        return self.cylinders * self.heads * self.sectors * SECTOR_BYTES


_FORMATS: Final = (
    *(Geometry(40, heads, sectors, Density.DD_525) for heads in (1, 2) for sectors in (8, 9)),
    Geometry(80, 2, 15, Density.HD_525),
    Geometry(80, 2, 8, Density.DD_35),
    *(Geometry(cylinders, 2, sectors, Density.DD_35) for sectors in (9, 10) for cylinders in (80, 82, 83)),
    *(Geometry(cylinders, 2, sectors, Density.HD_35) for sectors in (18, 20, 21, 22, 23, 24) for cylinders in (80, 82, 83)),
    *(Geometry(80, 2, sectors, Density.ED_35) for sectors in (36, 39, 40, 44, 48)),
)
FORMATS: Final = {geometry.size_bytes: geometry for geometry in _FORMATS}
STANDARD: Final = FORMATS[1440 * KIB]
LARGEST_STANDARD: Final = FORMATS[2880 * KIB]


def geometry_of(size_bytes: int) -> Geometry:
    """An image of no known size is the beginning of a 1.44 MB or 2.88 MB disk; raises UserError when it is larger than those."""
    known = FORMATS.get(size_bytes)
    if known is not None:
        return known
    for whole in (STANDARD, LARGEST_STANDARD):
        if 0 < size_bytes < whole.size_bytes:
            return whole
    raise UserError(
        f"A floppy image of {size_bytes} bytes is of no known format.",
        "Images have 160, 180, 320, 360, 640, 720, 1200, 1440, 1680, 1720 or 2880 KiB; a larger one is a disk for --disk.",
    )


class DriveKind(Enum):
    """Numbered as in CMOS byte 0x10 of a PC/AT."""

    NONE = 0
    K360 = 1
    M1_2 = 2
    K720 = 3
    M1_44 = 4
    M2_88 = 5

    @staticmethod
    def for_density(density: Density) -> DriveKind:
        """The drive such a medium was usually put into."""
        kinds = {Density.DD_525: DriveKind.K360, Density.HD_525: DriveKind.M1_2, Density.ED_35: DriveKind.M2_88}
        return kinds.get(density, DriveKind.M1_44)

    @property
    def last_cylinder(self) -> int:
        """Where the head meets the stop."""
        return 41 if self is DriveKind.K360 else 83


class Drive:
    """One drive: the position of its head, and the medium in it.  The controller keeps `cylinder` in its own state."""

    def __init__(self, kind: DriveKind | None, block: Block | None) -> None:
        """`kind` None: the one that suits the medium, 1.44 MB when there is none.  Raises UserError for an unknown size."""
        self.geometry: Geometry | None = None
        self.block: Block | None = None
        self._load(block)
        if kind is None:
            kind = DriveKind.for_density(self.geometry.density) if self.geometry else DriveKind.M1_44
        self.kind = kind

    def _load(self, block: Block | None) -> None:
        self.geometry = geometry_of(block.size_bytes) if block is not None else None
        self.block = block

    def change(self, block: Block | None) -> None:
        """Takes the medium out and puts another one in; raises UserError, and keeps the old one, for an unknown size."""
        self._load(block)

    @property
    def readonly(self) -> bool:
        return self.block is not None and self.block.readonly

    def rate(self) -> int:
        """The data rate at which the medium can be read here.  A 1.2 MB drive turns faster than a 360 KiB one (360 rpm)."""
        assert self.geometry is not None
        density = self.geometry.density
        if density is Density.DD_525 and self.kind is DriveKind.M1_2:
            return RATE_300
        if density is Density.ED_35:
            return RATE_1000
        return RATE_500 if density in (Density.HD_525, Density.HD_35) else RATE_250

    def track(self, cylinder: int) -> int | None:
        """Number of the medium's track below a head at `cylinder`, None between and behind the recorded ones."""
        if self.geometry is None:
            return None
        if self.geometry.density is Density.DD_525 and self.kind is not DriveKind.K360:
            if cylinder & 1:  # 96 tracks an inch over a medium with 48
                return None
            cylinder >>= 1
        return cylinder if cylinder < self.geometry.cylinders else None

    def read(self, track: int, head: int, sector: int, count: int = 1) -> bytes | None:
        """Sectors of one track; None when the host cannot.  What lies behind the end of a short image reads as zeroes."""
        offset, size = self._offset(track, head, sector), count * SECTOR_BYTES
        assert self.block is not None
        stored = min(max(self.block.size_bytes - offset, 0), size) // SECTOR_BYTES * SECTOR_BYTES
        data = bytearray(size)
        if stored:
            try:
                self.block.read(offset, memoryview(data)[:stored])
            except (OSError, RingfenceError) as error:
                if trace:
                    trace("read at %#x: %s", offset, error)
                return None
        return bytes(data)

    def write(self, track: int, head: int, sector: int, data: bytes) -> bool:
        """False when the host cannot, and behind the end of a short image."""
        offset = self._offset(track, head, sector)
        assert self.block is not None
        if offset + SECTOR_BYTES > self.block.size_bytes:
            return False
        try:
            self.block.write(offset, memoryview(data))
        except (OSError, RingfenceError) as error:
            if trace:
                trace("write at %#x: %s", offset, error)
            return False
        return True

    def _offset(self, track: int, head: int, sector: int) -> int:
        assert self.geometry is not None
        return ((track * self.geometry.heads + head) * self.geometry.sectors + sector - 1) * SECTOR_BYTES
