"""The stencils that real systems use, built once per user and version so that no guest waits for the compiler.

`shipped_forms.txt.xz` holds one key a line; `scripts/collect-forms` gathers them from the caches of real runs.  A line that
no longer fits the bodies (a form that changed its shape) is skipped: it would be compiled on need under its new name.
"""

from __future__ import annotations

import lzma
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context

from ringfence.core.trace import tracer
from ringfence.isa.x86.context import INSTRUCTIONS
from ringfence.translate.objects import Code
from ringfence.translate.stencils import BATCH, Key, Progress, StencilStore, compile_keys, host_cpus, key_of

trace = tracer("stencils")


def shipped_lines() -> list[str]:
    """The shipped list, one key's text each."""
    path = resources.files("ringfence.translate") / "shipped_forms.txt.xz"
    return lzma.decompress(path.read_bytes()).decode().splitlines() if path.is_file() else []


def shipped_keys() -> list[Key]:
    return [key for key in map(key_of, shipped_lines()) if key.form.name in INSTRUCTIONS]


def _compile(lines: list[str]) -> list[tuple[str, Code]]:
    """In a worker process: compiles a batch; what cannot be compiled any more is left out."""
    keys = [key_of(line) for line in lines]
    try:
        return list(zip(lines, compile_keys(keys), strict=True))
    except (KeyError, TypeError, IndexError) as error:
        if trace:
            trace("a shipped form is out of date: %r", error)
        return [pair for line in lines for pair in _compile([line])] if len(lines) > 1 else []


def build_shipped(store: StencilStore, progress: Progress | None = None) -> None:
    """Compiles what of the list is missing in the store, on all of the host's CPUs, and saves it."""
    if store.complete:
        return
    missing = [line for line in shipped_lines() if line not in store.codes]
    batches = [missing[k : k + BATCH] for k in range(0, len(missing), BATCH)]
    done = 0
    if batches:
        with ProcessPoolExecutor(host_cpus(), mp_context=get_context("spawn")) as pool:
            for batch, compiled in zip(batches, pool.map(_compile, batches), strict=True):
                store.add(compiled)
                done += len(batch)
                if progress:
                    progress("compiling instruction stencils", done, len(missing))
    store.complete = True
    store.save(force=True)
