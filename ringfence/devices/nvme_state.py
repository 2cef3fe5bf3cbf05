"""Registers, features and counters of the NVMe controller.  NVM Express Base Specification 1.4, 3.1 and 5.21.1."""

from __future__ import annotations

from ringfence.core.state import Field, State
from ringfence.devices.nvme_queue import MAX_ENTRIES, QUEUES

VERSION = 0x00010400
# 3.1.1: 1024 entries, contiguous queues, 5 s to get ready, the NVM command set, pages of 4 KiB
CAP = MAX_ENTRIES - 1 | 1 << 16 | 10 << 24 | 1 << 37
CC_ENABLE, CC_WRITABLE = 1, 0x00FFFFF1
CSTS_READY, CSTS_FATAL, CSTS_SHUTDOWN_BUSY, CSTS_SHUTDOWN_DONE, CSTS_SHUTDOWN = 1, 2, 1 << 2, 2 << 2, 3 << 2
ASYNC_EVENTS = 4  # that a driver may have outstanding
EVENT_ERROR = 0
LOG_ERRORS = 1


class NvmeState(State):
    intms = Field(32, doc="interrupt vectors that are masked while MSI-X is off")
    cc = Field(32, doc="controller configuration")
    csts = Field(32, doc="controller status")
    aqa = Field(32, doc="admin queue attributes")
    asq = Field(64, doc="admin submission queue base address")
    acq = Field(64, doc="admin completion queue base address")
    arbitration = Field(32, doc="feature 01h")
    power_state = Field(32, doc="feature 02h")
    temperature_over = Field(16, reset=0x0157, doc="feature 04h, in kelvin")
    temperature_under = Field(16, doc="feature 04h, in kelvin")
    error_recovery = Field(32, doc="feature 05h")
    write_cache = Field(1, reset=1, doc="feature 06h")
    queues_set = Field(1, doc="feature 07h was set")
    coalescing = Field(16, doc="feature 08h; without effect")
    vector_config = Field(1, count=QUEUES, doc="feature 09h: coalescing disabled")
    write_atomicity = Field(1, doc="feature 0Ah")
    async_config = Field(32, doc="feature 0Bh")
    event_requests = Field(16, count=ASYNC_EVENTS, doc="command identifiers of asynchronous event requests")
    event_count = Field(3, doc="how many of those there are")
    event_pending = Field(32, doc="the error event that waits for a request, 0: none; 1 << 31 is set in it")
    event_masked = Field(1, doc="an error event was told and its log page not read since")
    error_count = Field(64, doc="errors logged since power-on")
    reads = Field(64, doc="read commands")
    writes = Field(64, doc="write commands")
    sectors_read = Field(64)
    sectors_written = Field(64)

    def controller_reset(self) -> None:
        """7.3.2: all but the admin queues' registers, the configuration just written, and what is counted since power-on."""
        kept = {name: getattr(self, name) for name in _KEPT}
        self.reset()
        for name, value in kept.items():
            setattr(self, name, value)


_KEPT = ("aqa", "asq", "acq", "cc", "error_count", "reads", "writes", "sectors_read", "sectors_written")
