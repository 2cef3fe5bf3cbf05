"""What of the host's files is attached to a machine, and how."""

from __future__ import annotations

from typing import Literal

from ringfence.backends.api import Block
from ringfence.core.record import Record


class Drive(Record):
    """A disk, CD or floppy of the host, and how the guest reaches it."""

    block: Block
    kind: Literal["disk", "cdrom", "floppy"]
    interface: Literal["virtio", "ide", "nvme", "floppy"]
