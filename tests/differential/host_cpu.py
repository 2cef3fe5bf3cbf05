"""The host CPU as a judge: runs instructions natively, each on a state of its own, in a child process.

`HostCpu.run` takes a batch of case records (see `records.CASE`), fills in their `out` half and returns; a guest exception
comes back as a trap vector.  A child that dies or hangs is replaced and the culprit is named.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.waiting import readable

from . import native_loop, records, segments
from .records import CASE, SLOT_BYTES, SLOT_ENTRY


class HostCrash(Exception):
    """The child died or hung on a case: its index in the batch."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"case {index}: {why}")
        self.index = index


def supported() -> str:
    """Why this host cannot be the judge; empty when it can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the judge executes x86-64 instructions natively on Linux"
    return ""


class HostCpu:
    """One child process; use in a `with` block."""

    def __init__(self, timeout_seconds: float = 20.0) -> None:
        self.timeout_seconds = timeout_seconds
        self.fd = os.memfd_create("ringfence-judge", 0)
        os.ftruncate(self.fd, records.MEMFD_BYTES)
        self.shared = mmap.mmap(self.fd, records.MEMFD_BYTES)
        self.cases: Any = np.frombuffer(self.shared, CASE, records.RECORDS, records.RECORDS_AT)
        self.base: Any = np.frombuffer(self.shared, "u1", records.WINDOW_BYTES, records.BASE_AT)
        self._code: Any = np.frombuffer(self.shared, "u1", records.SLOTS * SLOT_BYTES, records.CODE_AT).reshape(records.SLOTS, SLOT_BYTES)
        self._variables: Any = np.frombuffer(self.shared, "<u8", 64, records.SCRATCH_AT)
        self._code[:] = 0xCC
        loop = native_loop.assemble(native_loop.source())
        self.shared[records.LOOP_AT : records.LOOP_AT + len(loop)] = loop
        self.base[:] = records.window_image()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> HostCpu:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._end_child()
        os.close(self.fd)

    def load_code(self, instructions: list[bytes], resume: bool = True, bits: int = 64) -> list[int]:
        """Places instructions (at most SLOTS) of `bits` mode in slots of their own; returns their addresses, valid until the
        next call.

        Without `resume`, int3 follows each instruction, so that the trap's RIP tells where it ended.
        """
        self._code[: len(instructions)] = 0xCC
        addresses = []
        for k, raw in enumerate(instructions):
            entry = records.CODE_ADDR + k * SLOT_BYTES + SLOT_ENTRY
            code = raw + native_loop.way_back(bits, entry + len(raw)) if resume else raw
            self._code[k, SLOT_ENTRY : SLOT_ENTRY + len(code)] = np.frombuffer(code, "u1")
            addresses.append(entry)
        return addresses

    def run(self, cases: Any) -> None:
        """Executes up to RECORDS cases, whose `entry` comes from `load_code`, and fills in their results.  Raises HostCrash."""
        n = len(cases)
        self.cases[:n] = cases
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        line = b"%d\n" % n
        try:
            child.stdin.write(line)
            child.stdin.flush()
        except BrokenPipeError as error:
            self._end_child()
            raise HostCrash(0, "the child has gone") from error
        if self._answer(child, self.timeout_seconds) != line:
            at = (int(self._variables[native_loop.record_variable()]) - records.RECORDS_ADDR) // CASE.itemsize
            code = child.poll()
            self._end_child()
            variables = {name: hex(int(self._variables[k])) for k, name in enumerate(native_loop.VARIABLES)}
            raise HostCrash(at, f"the child hangs or died (status {code}; {variables})")
        cases[:] = self.cases[:n]

    def _answer(self, child: subprocess.Popen[bytes], timeout_seconds: float) -> bytes:
        assert child.stdout is not None
        return child.stdout.readline() if readable(child.stdout.fileno(), timeout_seconds) else b""

    def _start(self) -> subprocess.Popen[bytes]:
        r = records
        code_bytes, record_bytes = r.SLOTS * SLOT_BYTES, r.RECORDS * CASE.itemsize
        loop_bytes = r.CODE_AT - r.LOOP_AT
        shared = (
            (r.SCRATCH_ADDR, r.PAGE, 3, r.SCRATCH_AT),
            (r.BASE_ADDR, r.WINDOW_BYTES, 1, r.BASE_AT),
            (r.LOOP_ADDR, loop_bytes, 5, r.LOOP_AT),
            (r.CODE_ADDR, code_bytes, 5, r.CODE_AT),
            (r.RECORDS_ADDR, record_bytes, 3, r.RECORDS_AT),
        )
        numbers = (
            r.WINDOW_ADDR, r.WINDOW_BYTES, r.READ_ONLY_ADDR, r.GS_BASE, r.LOOP_ADDR + native_loop.HANDLER,
            r.LOOP_ADDR + native_loop.RUN, r.RECORDS_ADDR, CASE.itemsize,
        )  # fmt: skip
        script = Path(__file__).with_name("host_child.py")
        child = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(script),
                str(self.fd),
                ",".join(":".join(map(str, s)) for s in shared),
                ",".join(map(str, numbers)),
                b"".join(s.user_desc(n) for n, s in enumerate(segments.TABLE.values())).hex(),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.fd],
        )
        self._child = child
        if self._answer(child, 20) != b"ready\n":
            self._end_child()
            raise RuntimeError("the host judge's child did not start")
        return child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
