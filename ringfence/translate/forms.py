"""The stencils and recipes that real systems use, built once per user and version so that no guest waits for the compiler.

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
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from ringfence.core.trace import tracer
from ringfence.isa.x86.context import INSTRUCTIONS
from ringfence.translate import encodings
from ringfence.translate.compiling import compile_keys
from ringfence.translate.objects import Code, Hole
from ringfence.translate.stencils import BATCH, Key, Progress, StencilStore, host_cpus, key_of

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


def _worker(stage: str) -> None:
    """The worker process: lines on standard input, marshalled batches on standard output."""
    store = StencilStore()
    for batch in _batches(sys.stdin.read().splitlines()):
        pack: Any
        if stage == "stencils":
            pack = [(text, code.code, [tuple(h) for h in code.holes]) for text, code in _compile(batch)]
        else:
            before = set(store.natives)
            pack = encodings.build(batch, store), {k: v for k, v in store.natives.items() if k not in before}
        data = marshal.dumps((len(batch), pack))
        sys.stdout.buffer.write(struct.pack("<I", len(data)) + data)
        sys.stdout.buffer.flush()


def _results(worker: subprocess.Popen[bytes]) -> Iterator[tuple[int, Any]]:
    assert worker.stdout is not None
    while header := worker.stdout.read(4):
        yield marshal.loads(worker.stdout.read(struct.unpack("<I", header)[0]))


def _share_out(stage: str, label: str, lines: list[str], take: Callable[[Any], None], progress: Progress | None) -> bool:
    """Has all of the host's CPUs work through the lines; `take` gets each batch's result.  Whether none is missing.

    The work is done in processes of their own, because LLVM holds a lock; they are started as commands, so that a program
    that uses this package needs no guard around its main part.
    """
    done = 0
    lock = threading.Lock()
    command = [sys.executable, "-c", f"from ringfence.translate.forms import _worker; _worker({stage!r})"]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))

    def run(share: list[str]) -> None:
        nonlocal done
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
        with worker:
            assert worker.stdin is not None
            worker.stdin.write("\n".join(share).encode())
            worker.stdin.close()
            for count, result in _results(worker):
                with lock:
                    take(result)
                    done += count
                    if progress:
                        progress(label, done, len(lines))

    cpus = host_cpus()
    threads = [threading.Thread(target=run, args=(lines[k::cpus],), daemon=True) for k in range(cpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done == len(lines)


def build_shipped(store: StencilStore, progress: Progress | None = None) -> None:
    """Compiles what of the lists is missing in the store, on all of the host's CPUs, and saves it."""
    if not store.complete:
        missing = [line for line in shipped_lines() if line not in store]

        def take_stencils(pack: Any) -> None:
            store.add((text, Code(code, tuple(Hole(*h) for h in holes))) for text, code, holes in pack)

        store.complete = not missing or _share_out("stencils", "compiling instruction stencils", missing, take_stencils, progress)
        store.save(force=True)
    if not store.recipes.complete:

        def take_recipes(pack: Any) -> None:
            recipes, natives = pack
            store.recipes.added.update({name: record for name, record in recipes if name not in store.recipes})
            for name, data in natives.items():
                store.put_native(name, data)

        if _share_out("encodings", "preparing instruction encodings", encodings.shipped_encodings(), take_recipes, progress):
            store.recipes.complete = True
        store.recipes_changed = True
        store.save_recipes()
        store.save()
