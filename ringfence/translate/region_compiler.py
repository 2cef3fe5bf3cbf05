"""Regions are compiled in a process of their own: LLVM takes tens of milliseconds and as many megabytes.

    python -m ringfence.translate.region_compiler       requests on standard input, answers on standard output

A message is its length (u32, little-endian) and marshalled data.  The process is started when the first region is wanted and ends by
itself when nobody has asked for some seconds, or when the one who started it is gone.
"""

from __future__ import annotations

import marshal
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, NamedTuple

from ringfence.core.trace import tracer
from ringfence.isa.x86.models import MODELS
from ringfence.translate.objects import Linkable

trace = tracer("regions")

IDLE_S = 4.0
END_S = 2.0


class Request(NamedTuple):
    """`pages`: bytes by number, the seed's page being 0.  `table`: the TLB table of the mode."""

    pages: dict[int, bytes]
    seed: int
    mode: int
    table: int
    model: str
    final: bool  # there are no more pages to be had


class CompiledRegion(NamedTuple):
    """Position-independent code and what it was made from; places count from the start of the seed's page."""

    code: Linkable  # entry0, entry1 …
    entries: tuple[int, ...]
    blocks: tuple[int, ...]  # where a block of the translator's may begin
    content: tuple[tuple[int, bytes], ...]  # place and bytes, none over a page's end
    pages: tuple[int, ...]  # numbers, in the order that the code looks at them
    table: int
    instructions: int


Answer = CompiledRegion | tuple[int, ...] | None
"""A region; pages that would be looked at, before it is compiled; or None, where there is no loop that can be."""


def compile_region(request: Request) -> Answer:
    """What can be made of the code around a place."""
    # Only this function needs them, in a process of its own.
    import ringfence.isa.x86.bodies  # noqa: F401  (fills INSTRUCTIONS)
    from ringfence.translate.objects import compile_object, read_linkable
    from ringfence.translate.region_graph import PAGE_BYTES, Explorer, find_region
    from ringfence.translate.region_lower import RegionLowering
    from ringfence.translate.region_piece import Unsupported

    explorer = Explorer(request.pages, request.mode, MODELS[request.model])
    region = find_region(explorer, request.seed)
    if explorer.missing and not request.final:
        return tuple(sorted(explorer.missing))
    if region is None:
        return None
    try:
        compiled = RegionLowering(region, request.table).compile_text()
    except Unsupported:
        return None
    try:
        code = read_linkable(compile_object(compiled.text, "full"))
    except RuntimeError as error:  # LLVM's
        if trace:
            trace("%s", error)
        return None
    content = []
    for low, high in compiled.ranges:
        page, offset = divmod(low, PAGE_BYTES)
        content.append((low, request.pages[page][offset : offset + high - low]))
    # Blocks of the translator's begin anywhere: it cuts long ones, and faults and interrupts come back into their middle.
    places = [i.place for block in region.blocks.values() for i in block.instructions]
    return CompiledRegion(
        code, tuple(compiled.entries), tuple(places), tuple(content), tuple(compiled.pages), request.table, region.instructions
    )


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """Raises EOFError where the stream ends before."""
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _read(stream: IO[bytes]) -> Any:
    return marshal.loads(_exactly(stream, struct.unpack("<I", _exactly(stream, 4))[0]))


def _write(stream: IO[bytes], value: Any) -> None:
    data = marshal.dumps(value)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


class Compiler:
    """The other process, from here.  `submit` and `close` belong to one thread; `done(request number, answer)` is called on
    a thread of its own."""

    def __init__(self, done: Callable[[int, Answer], None]) -> None:
        self._done = done
        self._waiting: list[tuple[int, Request]] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self.started = 0

    def submit(self, number: int, request: Request) -> None:
        with self._wake:
            self._waiting.append((number, request))
            self._wake.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ringfence-regions", daemon=True)
            self._thread.start()

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._waiting.clear()
            self._wake.notify()
        process = self._process
        if process is not None:
            process.kill()  # it holds nothing that anybody needs
        if self._thread is not None:
            self._thread.join(END_S)

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    if not self._wake.wait(IDLE_S) and self._process is not None:
                        self._end_process()
                if self._closed:
                    self._end_process()
                    return
                number, request = self._waiting.pop(0)
            try:
                answer = self._ask(request)
            except (OSError, EOFError, ValueError, TypeError) as error:
                if trace:
                    trace("the compiler's process failed: %s", error)
                self._end_process()
                answer = None
            if not self._closed:
                self._done(number, answer)

    def _ask(self, request: Request) -> Answer:
        if self._process is None:
            command = [sys.executable, "-m", "ringfence.translate.region_compiler"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
            self.started += 1
        assert self._process.stdin is not None and self._process.stdout is not None
        _write(self._process.stdin, tuple(request))
        answer = _read(self._process.stdout)
        kind, fields = answer
        return CompiledRegion(*fields) if kind == "region" else fields

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                assert stream is not None
                stream.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    source = open(0, "rb", buffering=0)  # noqa: SIM115  (not buffered: select must see what is left)
    sink = sys.stdout.buffer
    while select.select([source], [], [], 10 * IDLE_S)[0]:
        try:
            request = Request(*_read(source))
        except EOFError:
            return
        answer = compile_region(request)
        _write(sink, ("region", tuple(answer)) if isinstance(answer, CompiledRegion) else ("other", answer))


if __name__ == "__main__":
    main()
