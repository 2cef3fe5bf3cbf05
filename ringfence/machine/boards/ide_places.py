"""Which disk and which CD drive sit where on the two IDE cables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringfence.core.errors import UserError
from ringfence.core.late import LateModule
from ringfence.devices.api import Executor
from ringfence.machine.boards.drives import Drive

if TYPE_CHECKING:
    from ringfence.devices import ata_drive, ata_geometry, atapi_drive, ide_drive
else:  # where there is such a drive
    ata_drive = LateModule("ringfence.devices.ata_drive")
    ata_geometry = LateModule("ringfence.devices.ata_geometry")
    atapi_drive = LateModule("ringfence.devices.atapi_drive")
    ide_drive = LateModule("ringfence.devices.ide_drive")

PLACES = ("primary master", "primary slave", "secondary master", "secondary slave")
_CD_PLACES = (2, 3, 1, 0)
_SECTOR_BYTES = 512


def place(drives: Sequence[Drive]) -> dict[int, Drive]:
    """CD drives on the second cable as long as there is room, disks in their order in what is left; raises UserError."""
    disks = [drive for drive in drives if drive.interface == "ide" and drive.kind == "disk"]
    cds = [drive for drive in drives if drive.interface == "ide" and drive.kind == "cdrom"]
    if len(disks) + len(cds) > len(PLACES):
        raise UserError(
            f"{len(disks)} IDE disks and {len(cds)} CD drives are more than the {len(PLACES)} that two IDE cables take.",
            "Attach disks with --disk FILE,if=virtio or if=nvme.",
        )
    places = dict(zip(_CD_PLACES, cds, strict=False))
    return dict(sorted((places | dict(zip([n for n in range(len(PLACES)) if n not in places], disks, strict=False))).items()))


def geometry(drive: Drive) -> tuple[ata_geometry.Geometry, ata_geometry.Translation]:
    """What an IDE disk announces, guessed from its partition table."""
    sector = bytearray(_SECTOR_BYTES)
    if drive.block.size_bytes >= _SECTOR_BYTES:
        drive.block.read(0, memoryview(sector))
    return ata_geometry.guess_geometry(drive.block.size_bytes // _SECTOR_BYTES, bytes(sector))


def build(places: dict[int, Drive], executor: Executor, *, dma: bool) -> list[ide_drive.IdeDrive | None]:
    """Drives by place; `dma` says whether the controller has a bus master."""
    built: list[ide_drive.IdeDrive | None] = [None] * len(PLACES)
    for number, drive in places.items():
        serial = f"RF{number + 1:08d}"
        if drive.kind == "disk":
            shape, _ = geometry(drive)
            built[number] = ata_drive.AtaDrive(drive.block, executor, geometry=shape, dma=dma, serial=serial, name=f"ide-disk{number}")
        else:
            built[number] = atapi_drive.AtapiDrive(drive.block, executor, dma=dma, serial=serial, name=f"ide-cdrom{number}")
    return built
