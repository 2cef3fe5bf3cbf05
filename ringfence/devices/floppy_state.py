"""Registers and phases of the floppy controller.  Intel 82077AA data sheet (290166-007), chapters 2 and 5."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

from ringfence.core.state import Field, State

UNITS = 4  # that the controller can select; two of them have a drive here
FIFO_BYTES = 16
BUFFER_BYTES = 1024  # a sector, or the 255 sector IDs of a track that is formatted
TIMERS = UNITS + 2
EXECUTION_TIMER, RESET_TIMER = UNITS, UNITS + 1  # those before are the seeks of each unit

DOR_SELECT, DOR_NOT_RESET, DOR_DMA_GATE = 0x03, 0x04, 0x08
CONFIG_EIS, CONFIG_EFIFO, CONFIG_POLL = 0x40, 0x20, 0x10
ST0_ABNORMAL, ST0_INVALID, ST0_POLLED, ST0_SEEK_END, ST0_EQUIPMENT = 0x40, 0x80, 0xC0, 0x20, 0x10
ST1_EN, ST1_DE, ST1_OR, ST1_ND, ST1_NW, ST1_MA = 0x80, 0x20, 0x10, 0x04, 0x02, 0x01
ST2_CM, ST2_DD, ST2_WC, ST2_SH, ST2_SN = 0x40, 0x20, 0x10, 0x08, 0x04
ST3_WRITE_PROTECTED, ST3_ALWAYS, ST3_TRACK_0 = 0x40, 0x28, 0x10

MULTI_TRACK, MFM, SKIP = 0x80, 0x40, 0x20


class Phase(IntEnum):
    """82077AA, 5.1: what the FIFO is for."""

    RESETTING = 0
    IDLE = auto()
    COMMAND = auto()
    EXECUTION = auto()
    READING = auto()  # non-DMA: bytes for the host are in the buffer
    WRITING = auto()  # non-DMA: bytes from the host are awaited
    RESULT = auto()


class Command(IntEnum):
    """Low five bits of a command byte; LOCK, READ ID and FORMAT TRACK have options above them."""

    READ_TRACK = 0x02
    SPECIFY = 0x03
    SENSE_DRIVE_STATUS = 0x04
    WRITE_DATA = 0x05
    READ_DATA = 0x06
    RECALIBRATE = 0x07
    SENSE_INTERRUPT_STATUS = 0x08
    WRITE_DELETED_DATA = 0x09
    READ_ID = 0x0A
    READ_DELETED_DATA = 0x0C
    FORMAT_TRACK = 0x0D
    DUMPREG = 0x0E
    SEEK = 0x0F
    VERSION = 0x10
    SCAN_EQUAL = 0x11
    PERPENDICULAR_MODE = 0x12
    CONFIGURE = 0x13
    LOCK = 0x14
    VERIFY = 0x16
    SCAN_LOW_OR_EQUAL = 0x19
    SCAN_HIGH_OR_EQUAL = 0x1D


# Bytes behind the command byte, and which of its upper bits may be set
_SHAPES: Final = {
    Command.READ_TRACK: (8, MFM | SKIP),
    Command.SPECIFY: (2, 0),
    Command.SENSE_DRIVE_STATUS: (1, 0),
    Command.WRITE_DATA: (8, MULTI_TRACK | MFM),
    Command.READ_DATA: (8, MULTI_TRACK | MFM | SKIP),
    Command.RECALIBRATE: (1, 0),
    Command.SENSE_INTERRUPT_STATUS: (0, 0),
    Command.WRITE_DELETED_DATA: (8, MULTI_TRACK | MFM),
    Command.READ_ID: (1, MFM),
    Command.READ_DELETED_DATA: (8, MULTI_TRACK | MFM | SKIP),
    Command.FORMAT_TRACK: (5, MFM),
    Command.DUMPREG: (0, 0),
    Command.SEEK: (2, 0xC0),
    Command.VERSION: (0, 0),
    Command.SCAN_EQUAL: (8, MULTI_TRACK | MFM | SKIP),
    Command.PERPENDICULAR_MODE: (1, 0),
    Command.CONFIGURE: (3, 0),
    Command.LOCK: (0, 0x80),
    Command.VERIFY: (8, MULTI_TRACK | MFM | SKIP),
    Command.SCAN_LOW_OR_EQUAL: (8, MULTI_TRACK | MFM | SKIP),
    Command.SCAN_HIGH_OR_EQUAL: (8, MULTI_TRACK | MFM | SKIP),
}


def parameter_count(first: int) -> int | None:
    """How many bytes follow the command byte, None when it is no command.  PART ID is none on this chip: drivers tell it by that."""
    code = first & 0x1F
    if code not in _SHAPES or first == 0x4F:  # relative seek needs bit 7
        return None
    count, options = _SHAPES[Command(code)]
    return None if first & 0xE0 & ~options else count


class FloppyState(State):
    dor = Field(8, doc="digital output register")
    tdr = Field(2, doc="tape drive register")
    dsr = Field(7, reset=0x02, doc="data rate select register")
    rate = Field(2, reset=0x02, doc="data rate last written to DSR or CCR")
    phase = Field(3, doc="see Phase")
    fifo = Field(8, count=FIFO_BYTES, doc="command bytes, then result bytes")
    fifo_length = Field(5, doc="bytes of the command so far, or of the result")
    fifo_position = Field(5, doc="next result byte to read")
    buffer = Field(8, count=BUFFER_BYTES, doc="data under way in non-DMA mode")
    buffer_length = Field(11)
    buffer_position = Field(11)
    watched_position = Field(11, doc="where the host was in the buffer when it was last looked after")
    srt_hut = Field(8, doc="first byte of SPECIFY")
    hlt_nd = Field(8, doc="second byte of SPECIFY; bit 0: non-DMA mode")
    config = Field(8, reset=CONFIG_EFIFO, doc="second byte of CONFIGURE")
    pretrk = Field(8, doc="write precompensation start track")
    lock = Field(1, doc="LOCK: FIFO settings survive a software reset")
    perpendicular = Field(6, doc="D3-D0, GAP, WGATE")
    sc_eot = Field(8, doc="sector count or EOT of the last command, for DUMPREG")
    pcn = Field(8, count=UNITS, doc="present cylinder number, as the controller counts")
    cylinder = Field(8, count=UNITS, doc="where each drive's head stands")
    disk_changed = Field(1, count=UNITS, reset=1, doc="each drive's disk change latch")
    seeking = Field(1, count=UNITS, doc="a seek is under way")
    end_status = Field(8, count=UNITS, doc="ST0 for SENSE INTERRUPT STATUS, 0 when there is nothing to tell")
    seek_interrupt = Field(1, doc="INT because of a seek or a reset")
    result_interrupt = Field(1, doc="INT because of a result or of data")
    st1 = Field(8)
    st2 = Field(8)
    unit = Field(2, doc="the running command's drive")
    head = Field(1, doc="the running command's head")
    id_cylinder = Field(8, doc="C, H and R of the sector whose turn it is")
    id_head = Field(8)
    id_sector = Field(8)
    sectors_done = Field(16)
    rotation = Field(8, doc="the sector that READ ID met last")
    remaining_ns = Field(48, count=TIMERS, doc="time until each timer is due, plus 1; 0 when it is not armed (filled in by save)")
    irq_level = Field(1, doc="level of the interrupt pin (filled in by save)")
