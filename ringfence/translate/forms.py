"""The stencils that real systems use, built once per user and version so that no guest waits for the compiler.

`shipped_forms.txt.xz` holds one key a line; `scripts/collect-forms` gathers them from the caches of real runs.  A line that
no longer fits the bodies (a form that changed its shape) is skipped: it would be compiled on need under its new name.
"""

from __future__ import annotations

import lzma
import marshal
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from ringfence.core.trace import tracer
from ringfence.isa.x86.context import INSTRUCTIONS
from ringfence.translate.objects import Code, Hole
from ringfence.translate.stencils import BATCH, Key, Progress, StencilStore, compile_keys, host_cpus, key_of

trace = tracer("stencils")


def shipped_lines() -> list[str]:
    """The shipped list, one key's text each."""
    path = resources.files("ringfence.translate") / "shipped_forms.txt.xz"
    return lzma.decompress(path.read_bytes()).decode().splitlines() if path.is_file() else []


def shipped_keys() -> list[Key]:
    return [key for key in map(key_of, shipped_lines()) if key.form.name in INSTRUCTIONS]


def _compile(lines: list[str]) -> list[tuple[str, Code]]:
    """Compiles a batch; what cannot be compiled any more is left out."""
    try:
        return list(zip(lines, compile_keys(map(key_of, lines)), strict=True))
    except (KeyError, TypeError, IndexError) as error:
        if trace:
            trace("a shipped form is out of date: %r", error)
        return [pair for line in lines for pair in _compile([line])] if len(lines) > 1 else []


def _batches(lines: list[str]) -> list[list[str]]:
    return [lines[k : k + BATCH] for k in range(0, len(lines), BATCH)]


def _worker() -> None:
    """The worker process: keys on standard input, marshalled batches on standard output."""
    for batch in _batches(sys.stdin.read().splitlines()):
        pack = [(text, code.code, [tuple(h) for h in code.holes]) for text, code in _compile(batch)]
        data = marshal.dumps((len(batch), pack))
        sys.stdout.buffer.write(struct.pack("<I", len(data)) + data)
        sys.stdout.buffer.flush()


def _results(worker: subprocess.Popen[bytes]) -> Iterator[tuple[int, list[tuple[str, Code]]]]:
    assert worker.stdout is not None
    while header := worker.stdout.read(4):
        count, pack = marshal.loads(worker.stdout.read(struct.unpack("<I", header)[0]))
        yield count, [(text, Code(code, tuple(Hole(*h) for h in holes))) for text, code, holes in pack]


def build_shipped(store: StencilStore, progress: Progress | None = None) -> None:
    """Compiles what of the list is missing in the store, on all of the host's CPUs, and saves it.

    The work is done in processes of their own, because LLVM holds a lock; they are started as commands, so that a program
    that uses this package needs no guard around its main part.
    """
    if store.complete:
        return
    missing = [line for line in shipped_lines() if line not in store]
    done = 0
    if missing:
        threads = []
        lock = threading.Lock()

        def run(share: list[str]) -> None:
            nonlocal done
            command = [sys.executable, "-c", "from ringfence.translate.forms import _worker; _worker()"]
            path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
            with worker:
                assert worker.stdin is not None
                worker.stdin.write("\n".join(share).encode())
                worker.stdin.close()
                for count, compiled in _results(worker):
                    with lock:
                        store.add(compiled)
                        done += count
                        if progress:
                            progress("compiling instruction stencils", done, len(missing))

        cpus = host_cpus()
        for k in range(cpus):
            threads.append(threading.Thread(target=run, args=(missing[k::cpus],), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
    store.complete = done == len(missing)
    store.save(force=True)
