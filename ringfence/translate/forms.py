"""The stencils that real systems use, built once per user and version so that no guest waits for the compiler.

`shipped_forms.txt` holds one key a line; it was collected by running Linux distributions (see `scripts/collect-forms`).
"""

from __future__ import annotations

from importlib import resources

from ringfence.translate.stencils import Key, Progress, StencilStore, key_of


def shipped_keys() -> list[Key]:
    """The keys of the shipped list."""
    path = resources.files("ringfence.translate") / "shipped_forms.txt"
    if not path.is_file():
        return []
    return [key_of(line) for line in path.read_text().splitlines() if line]


def build_shipped(store: StencilStore, progress: Progress | None = None) -> None:
    """Compiles what of the list is missing in the store, and saves it."""
    if store.complete:
        return
    store.compile(shipped_keys(), progress)
    store.complete = True
    store.save()
