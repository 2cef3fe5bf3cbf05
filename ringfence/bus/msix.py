"""MSI-X: one interrupt message per vector, programmed by the guest into a table in a BAR.

PCI Local Bus Specification 3.0, 6.8.2 (capability and table structures) and 6.8.3.  The BAR holds the table at offset 0
and the pending bit array at `PBA_OFFSET`.
"""

from __future__ import annotations

import struct
from typing import Any

from ringfence.bus.irq import MsiSink
from ringfence.bus.pci import BarKind, PciFunction
from ringfence.core.state import Field, State

CAPABILITY_MSIX = 0x11
MAX_VECTORS = 64
PBA_OFFSET = 0x800
BAR_BYTES = 0x1000
ENABLE, FUNCTION_MASK = 0x80, 0x40  # in the high byte of Message Control
VECTOR_MASKED = 1


class MsixState(State):
    table = Field(32, count=4 * MAX_VECTORS, doc="per vector: address low, address high, data, vector control")
    pending = Field(1, count=MAX_VECTORS, doc="pending bit array")

    def reset(self) -> None:
        super().reset()
        self.table[3::4] = [VECTOR_MASKED] * MAX_VECTORS


class Msix:
    """The MSI-X capability of `function`, with its table in BAR `bar_index`; a bus handler for that BAR."""

    def __init__(self, function: PciFunction, vectors: int, bar_index: int, sink: MsiSink) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"{function.name}: {vectors} MSI-X vectors; 1 to {MAX_VECTORS} are possible")
        self.vectors = vectors
        self.state = MsixState()
        self._sink = sink
        self._function = function
        function.add_bar(bar_index, BAR_BYTES, self, BarKind.MEM64)
        body = struct.pack("<HII", vectors - 1, bar_index, PBA_OFFSET | bar_index)
        # the half of Message Control that holds ENABLE and FUNCTION_MASK
        self.control_offset = function.add_capability(CAPABILITY_MSIX, body, b"\x00\xc0") + 3
        function.on_config_write(self.control_offset, 1, self._deliver_pending)

    @property
    def enabled(self) -> bool:
        return bool(self._function.state.config[self.control_offset] & ENABLE)

    def notify(self, vector: int) -> None:
        """Sends the vector's message, or marks it pending while it is masked.  A vector out of range is ignored."""
        if vector >= self.vectors or not self.enabled:
            return
        table = self.state.table
        entry = 4 * vector
        if self._function.state.config[self.control_offset] & FUNCTION_MASK or table[entry + 3] & VECTOR_MASKED:
            self.state.pending[vector] = 1
        else:
            self._sink.send_msi(table[entry + 1] << 32 | table[entry] & ~3, table[entry + 2])

    def _deliver_pending(self) -> None:
        if 1 in self.state.pending:
            for vector in range(self.vectors):
                if self.state.pending[vector]:
                    self.state.pending[vector] = 0
                    self.notify(vector)  # becomes pending again when still masked

    def _dword(self, offset: int) -> int:
        if offset < 16 * self.vectors:
            return int(self.state.table[offset >> 2])
        if PBA_OFFSET <= offset < PBA_OFFSET + MAX_VECTORS // 8:
            first = 8 * (offset - PBA_OFFSET)
            return sum(bit << k for k, bit in enumerate(self.state.pending[first : first + 32]))
        return 0

    def read(self, offset: int, size: int) -> int:
        """6.8.2: software reads aligned dwords or qwords; a part of a dword reads as one would expect."""
        aligned = offset & ~3
        value = self._dword(aligned) | self._dword(aligned + 4) << 32 | self._dword(aligned + 8) << 64
        return value >> 8 * (offset - aligned) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Aligned dwords and qwords; everything else, and the pending bits, swallow writes."""
        if size < 4 or offset & 3:
            return
        unmasked = False
        for k in range(offset, min(offset + size, 16 * self.vectors), 4):
            self.state.table[k >> 2] = value & 0xFFFFFFFF
            unmasked |= k & 12 == 12 and not value & VECTOR_MASKED
            value >>= 32
        if unmasked:
            self._deliver_pending()

    def reset(self) -> None:
        self.state.reset()

    def save(self) -> dict[str, Any]:
        return self.state.save()

    def load(self, saved: dict[str, Any]) -> None:
        self.state.load(saved)
