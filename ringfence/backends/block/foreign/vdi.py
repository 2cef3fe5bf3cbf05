"""VDI, the format of VirtualBox: dynamic and fixed images of version 1.

Specification: none was published; the layout is that of VirtualBox's own header file `VDICore.h` (VDIHEADER1PLUS, version 1.1),
as described in the public documents "All about VDIs" (VirtualBox forum) and libyal's "VirtualBox disk image format".
Integers are little-endian.
"""

from __future__ import annotations

import struct

from ringfence.backends.block.foreign.source import ForeignBlock, Run, differencing
from ringfence.backends.block.foreign.window import PagedTable, Window
from ringfence.backends.block.hostfile import HostFile
from ringfence.core.errors import ImageError
from ringfence.core.units import MIB

SIGNATURE_OFFSET, SIGNATURE = 64, b"\x7f\x10\xda\xbe"
# from byte 64: signature, version, header size, type, flags, comment, map, data, geometry (4), unused, disk, block, extra, blocks, used
_HEADER = struct.Struct("<4sIIII256sII4IIQIIII")
_UUIDS = struct.Struct("<16s16s16s16s")  # the image's, of its last change, of its parent, of the parent's last change
_DYNAMIC, _FIXED, _UNDO, _DIFFERENCING = 1, 2, 3, 4
_FREE, _ZERO = 0xFFFFFFFF, 0xFFFFFFFE
_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 4096, 256 * MIB


class VdiBlock(ForeignBlock):
    format = "vdi"

    def __init__(self, file: HostFile, window: Window) -> None:
        data = window.read(SIGNATURE_OFFSET, _HEADER.size + _UUIDS.size, "header")
        fields = _HEADER.unpack_from(data)
        magic, version, _, kind, _, _, map_offset, data_offset = fields[:8]
        disk_bytes, block_bytes, extra_bytes, blocks, _ = fields[13:]
        if magic != SIGNATURE:
            raise ImageError(f"{window.name} is not a VDI image.", "Check the path, or give its format.")
        if version >> 16 != 1:
            raise ImageError(f"{window.name} is a VDI image of version {version >> 16}; 1 is supported.", "Convert it with VirtualBox.")
        _, _, parent, _ = _UUIDS.unpack_from(data, _HEADER.size)
        if kind in (_UNDO, _DIFFERENCING) or any(parent):
            raise differencing(window)
        if kind not in (_DYNAMIC, _FIXED):
            raise window.damaged(f"an image type of {kind} is not possible")
        if not _MIN_BLOCK_BYTES <= block_bytes <= _MAX_BLOCK_BYTES or block_bytes & block_bytes - 1:
            raise window.damaged(f"blocks of {block_bytes} bytes are not possible")
        if extra_bytes:
            raise ImageError(f"{window.name} keeps extra data with each block, which is not supported.", "Convert it with VirtualBox.")
        super().__init__([file], window, disk_bytes, "dynamic" if kind == _DYNAMIC else "fixed")
        if blocks < -(-disk_bytes // block_bytes):
            raise window.damaged("its block map is too small for its size")
        self._block_bytes = block_bytes
        self._data_offset = data_offset
        self._map = PagedTable(window, map_offset, blocks, 4, "block map")

    def _run(self, offset: int, limit: int) -> Run:
        block, within = divmod(offset, self._block_bytes)
        most = -(-(within + limit) // self._block_bytes)
        entry = self._map[block]
        if entry >= _ZERO:
            return Run(min(limit, self._map.repeats(block, most) * self._block_bytes - within))
        size_bytes = min(limit, self._map.ascends(block, most, 1) * self._block_bytes - within)
        return Run(size_bytes, self._file, self._data_offset + entry * self._block_bytes + within)
