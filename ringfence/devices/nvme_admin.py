"""NVMe admin commands.  NVM Express Base Specification 1.4, chapter 5."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from ringfence.backends.api import Block
from ringfence.core.errors import GuestMemoryError
from ringfence.core.units import PAGE_BYTES
from ringfence.devices import nvme_identify as identify
from ringfence.devices.nvme_io import ALL_NAMESPACES, NAMESPACE
from ringfence.devices.nvme_queue import (
    ABORT_REQUESTED,
    AER_LIMIT_EXCEEDED,
    CQ_INVALID,
    DATA_TRANSFER_ERROR,
    FEATURE_NOT_SAVEABLE,
    INVALID_FIELD,
    INVALID_NAMESPACE,
    INVALID_OPCODE,
    IO_QUEUES,
    MAX_ENTRIES,
    QID_INVALID,
    QUEUE_DELETION_INVALID,
    QUEUE_SIZE_INVALID,
    QUEUES,
    SEQUENCE_ERROR,
    VECTOR_INVALID,
    Command,
    CommandError,
    CompletionQueue,
    SubmissionQueue,
    prp_ranges,
    scatter,
)
from ringfence.devices.nvme_state import ASYNC_EVENTS, LOG_ERRORS, NvmeState
from ringfence.memory.guest_memory import GuestMemory

DELETE_SQ, CREATE_SQ, GET_LOG_PAGE, DELETE_CQ, CREATE_CQ, IDENTIFY, ABORT = 0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08
SET_FEATURES, GET_FEATURES, ASYNC_EVENT_REQUEST = 0x09, 0x0A, 0x0C
_SQES_64_BYTES, _CQES_16_BYTES = 6, 4


class Admin:
    """Executes admin commands.  `drain` returns when no I/O is under way; `complete` ends another command than the running one."""

    def __init__(
        self,
        state: NvmeState,
        memory: GuestMemory,
        backend: Block,
        submission: list[SubmissionQueue],
        completion: list[CompletionQueue],
        drain: Callable[[], None],
        complete: Callable[[int, int, int], None],
        identity: tuple[int, int, str],
    ) -> None:
        """`complete(cid, status, result)`; `identity`: vendor, subsystem vendor, serial number."""
        self._state = state
        self._memory = memory
        self._submission = submission
        self._completion = completion
        self._drain = drain
        self._complete = complete
        self._controller = identify.controller(*identity)
        self._namespace = identify.namespace(backend)
        self._descriptors = identify.namespace_descriptors(identity[2])
        self._commands: Final[dict[int, Callable[[Command], int | None]]] = {
            DELETE_SQ: self._delete_sq,
            CREATE_SQ: self._create_sq,
            GET_LOG_PAGE: self._get_log_page,
            DELETE_CQ: self._delete_cq,
            CREATE_CQ: self._create_cq,
            IDENTIFY: self._identify,
            ABORT: self._abort,
            SET_FEATURES: self._set_features,
            GET_FEATURES: self._get_features,
            ASYNC_EVENT_REQUEST: self._async_event_request,
        }

    def execute(self, command: Command) -> int | None:
        """The command's result (dword 0 of its completion), None when it completes later.  Raises CommandError."""
        perform = self._commands.get(command.opcode)
        if perform is None:
            raise CommandError(INVALID_OPCODE)
        if command.flags:
            raise CommandError(INVALID_FIELD)
        try:
            return perform(command)
        except GuestMemoryError as error:
            raise CommandError(DATA_TRANSFER_ERROR) from error

    def _give(self, command: Command, data: bytes) -> None:
        if data:
            scatter(self._memory, prp_ranges(self._memory, command, len(data)), data)

    # -- queues (5.3 to 5.6) ---------------------------------------------------------------------------------------------

    def _queue_number(self, command: Command) -> int:
        number = command.cdw10 & 0xFFFF
        if not 1 <= number <= IO_QUEUES:
            raise CommandError(QID_INVALID)
        return number

    def _new_queue(self, command: Command, queues: Sequence[SubmissionQueue | CompletionQueue]) -> tuple[int, int]:
        """Number and entries of a queue that is to be made."""
        number = self._queue_number(command)
        entries = (command.cdw10 >> 16) + 1
        if queues[number].size:
            raise CommandError(QID_INVALID)
        if not 2 <= entries <= MAX_ENTRIES:
            raise CommandError(QUEUE_SIZE_INVALID)
        if not command.cdw11 & 1 or command.prp1 % PAGE_BYTES:  # PC: physically contiguous
            raise CommandError(INVALID_FIELD)
        return number, entries

    def _create_cq(self, command: Command) -> int:
        number, entries = self._new_queue(command, self._completion)
        vector = command.cdw11 >> 16
        if self._state.cc >> 20 & 15 != _CQES_16_BYTES:
            raise CommandError(QUEUE_SIZE_INVALID)
        if command.cdw11 & 2 and vector >= QUEUES:
            raise CommandError(VECTOR_INVALID)
        queue = self._completion[number]
        queue.reset()
        queue.base, queue.size = command.prp1, entries
        queue.interrupts, queue.vector = command.cdw11 >> 1 & 1, vector
        return 0

    def _create_sq(self, command: Command) -> int:
        number, entries = self._new_queue(command, self._submission)
        target = command.cdw11 >> 16
        if not 1 <= target <= IO_QUEUES or not self._completion[target].size:
            raise CommandError(CQ_INVALID)
        if self._state.cc >> 16 & 15 != _SQES_64_BYTES:
            raise CommandError(QUEUE_SIZE_INVALID)
        queue = self._submission[number]
        queue.reset()
        queue.base, queue.size, queue.completion_queue = command.prp1, entries, target
        return 0

    def _delete_sq(self, command: Command) -> int:
        number = self._queue_number(command)
        if not self._submission[number].size:
            raise CommandError(QID_INVALID)
        self._drain()
        self._submission[number].reset()
        return 0

    def _delete_cq(self, command: Command) -> int:
        number = self._queue_number(command)
        if not self._completion[number].size:
            raise CommandError(QID_INVALID)
        if any(queue.size and queue.completion_queue == number for queue in self._submission[1:]):
            raise CommandError(QUEUE_DELETION_INVALID)
        self._completion[number].reset()
        return 0

    # -- identification and logs (5.14, 5.15) ----------------------------------------------------------------------------

    def _identify(self, command: Command) -> int:
        kind, nsid = command.cdw10 & 0xFF, command.nsid
        if kind == 0x00:
            if nsid not in (NAMESPACE, ALL_NAMESPACES):
                raise CommandError(INVALID_NAMESPACE)
            self._give(command, self._namespace)
        elif kind == 0x01:
            self._give(command, self._controller)
        elif kind == 0x02:
            if nsid >= 0xFFFFFFFE:
                raise CommandError(INVALID_NAMESPACE)
            active = NAMESPACE if nsid < NAMESPACE else 0
            self._give(command, struct.pack("<I", active).ljust(identify.IDENTIFY_BYTES, b"\0"))
        elif kind == 0x03:
            if nsid != NAMESPACE:
                raise CommandError(INVALID_NAMESPACE)
            self._give(command, self._descriptors)
        else:
            raise CommandError(INVALID_FIELD)
        return 0

    def _get_log_page(self, command: Command) -> int:
        """A page is padded with zeroes to what was asked for, up to one page of memory."""
        number = command.cdw10 & 0xFF
        size = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
        offset = command.cdw12 | command.cdw13 << 32
        data = identify.log_page(number, self._state)
        if offset % 4 or offset > len(data):
            raise CommandError(INVALID_FIELD)
        self._give(command, data[offset : offset + size].ljust(min(size, PAGE_BYTES), b"\0"))
        if number == LOG_ERRORS and not command.cdw10 >> 15 & 1:  # RAE
            self._state.event_masked = 0
        return 0

    # -- events and aborts (5.1, 5.2) ------------------------------------------------------------------------------------

    def _async_event_request(self, command: Command) -> None:
        s = self._state
        if s.event_count == ASYNC_EVENTS:
            raise CommandError(AER_LIMIT_EXCEEDED)
        s.event_requests[s.event_count] = command.cid
        s.event_count += 1

    def _abort(self, command: Command) -> int:
        """Only event requests wait long enough to be found; bit 0 of the result: nothing was aborted."""
        s = self._state
        waiting = s.event_requests[: s.event_count]
        queue, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
        if queue == 0 and cid in waiting and self._completion[0].used + 2 < self._completion[0].size:
            waiting.remove(cid)
            s.event_requests = waiting + [0] * (ASYNC_EVENTS - len(waiting))
            s.event_count -= 1
            self._complete(cid, ABORT_REQUESTED, 0)
            return 0
        return 1

    # -- features (5.21) -------------------------------------------------------------------------------------------------

    def _set_features(self, command: Command) -> int:
        s, value = self._state, command.cdw11
        if command.cdw10 >> 31:  # SV: nothing here outlives the power
            raise CommandError(FEATURE_NOT_SAVEABLE)
        match command.cdw10 & 0xFF:
            case 0x01:
                s.arbitration = value
            case 0x02:
                if value & 0x1F:  # there is one power state
                    raise CommandError(INVALID_FIELD)
                s.power_state = value
            case 0x04:
                sensor, kind = value >> 16 & 15, value >> 20 & 3
                if sensor not in (0, 15) or kind > 1:
                    raise CommandError(INVALID_FIELD)
                if kind:
                    s.temperature_under = value & 0xFFFF
                else:
                    s.temperature_over = value & 0xFFFF
            case 0x05:
                s.error_recovery = value
            case 0x06:
                s.write_cache = value & 1
            case 0x07:
                if value & 0xFFFF == 0xFFFF or value >> 16 == 0xFFFF:
                    raise CommandError(INVALID_FIELD)
                if any(queue.size for queue in self._completion[1:]):
                    raise CommandError(SEQUENCE_ERROR)
                s.queues_set = 1
                return IO_QUEUES - 1 << 16 | IO_QUEUES - 1
            case 0x08:
                s.coalescing = value & 0xFFFF
            case 0x09:
                if value & 0xFFFF >= QUEUES:
                    raise CommandError(INVALID_FIELD)
                s.vector_config[value & 0xFFFF] = value >> 16 & 1
            case 0x0A:
                s.write_atomicity = value & 1
            case 0x0B:
                s.async_config = value
            case _:
                raise CommandError(INVALID_FIELD)
        return 0

    def _get_features(self, command: Command) -> int:
        s, value = self._state, command.cdw11
        if command.cdw10 >> 8 & 7:  # SEL: ONCS does not announce it
            raise CommandError(INVALID_FIELD)
        match command.cdw10 & 0xFF:
            case 0x01:
                found = s.arbitration
            case 0x02:
                found = s.power_state
            case 0x04:
                if value >> 16 & 15 or value >> 20 & 3 > 1:
                    raise CommandError(INVALID_FIELD)
                found = s.temperature_under if value >> 20 & 3 else s.temperature_over
            case 0x05:
                found = s.error_recovery
            case 0x06:
                found = s.write_cache
            case 0x07:
                found = IO_QUEUES - 1 << 16 | IO_QUEUES - 1
            case 0x08:
                found = s.coalescing
            case 0x09:
                if value & 0xFFFF >= QUEUES:
                    raise CommandError(INVALID_FIELD)
                found = value & 0xFFFF | s.vector_config[value & 0xFFFF] << 16
            case 0x0A:
                found = s.write_atomicity
            case 0x0B:
                found = s.async_config
            case _:
                raise CommandError(INVALID_FIELD)
        return int(found)
