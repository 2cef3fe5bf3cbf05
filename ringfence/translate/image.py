"""The native run time as one placed image: stubs, run-time functions, delivery and native bodies, linked for the code region.

Linking takes as long as everything else that a start does with the caches, so the linked image is kept as well.  Nothing in it
depends on where the host puts the region.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ringfence.core.cache_files import read_cache, write_cache
from ringfence.core.late import LateModule
from ringfence.translate.code_memory import FIXED_START, CodeMemory
from ringfence.translate.sources import FORMS, IMAGE, RECIPES, cache_path

if TYPE_CHECKING:
    from ringfence.isa.x86.context import Form
    from ringfence.translate import linking
    from ringfence.translate.stencils import StencilStore
else:  # once, after the sources have changed
    linking = LateModule("ringfence.translate.linking")


class Image(NamedTuple):
    """Code for one place of the region, `base`; symbols and native bodies by their places in the region."""

    base: int
    code: bytes
    symbols: dict[str, int]
    natives: dict[Form, int]


def _path() -> Path:
    return cache_path("image", IMAGE)


def ready() -> bool:
    """Whether an earlier start has kept its image; it was made after everything else, which is read when it is needed."""
    return all(path.exists() for path in (_path(), cache_path("forms", FORMS), cache_path("recipes", RECIPES)))


def forget() -> None:
    """Has the next start prepare everything."""
    with suppress(OSError):
        _path().unlink()


def _kept(base: int) -> Image | None:
    """The image as it was linked for this place by an earlier start."""
    kept = read_cache(_path())
    return Image(*kept) if kept is not None and kept[0] == base else None


def _keep(image: Image) -> None:
    natives = {(f.name, f.size, f.operands, tuple(f.mem), f.imms, f.lock, f.mode): at for f, at in image.natives.items()}
    write_cache(_path(), (*image[:3], natives))


def place_runtime(memory: CodeMemory, store: Callable[[], StencilStore]) -> dict[str, int]:
    """Puts the run time into the code region; returns its symbols as offsets in the region.  `store` is asked where it must be linked."""
    image = _kept(memory.fixed)
    if image is None:
        known = store()
        image = linking.link(known, memory.fixed)
        if known.built:
            _keep(image)
    memory.append_fixed(image.code, 1)
    memory.natives.update(image.natives)  # a form's tuple finds it as well
    return dict(image.symbols)


def keep_image(memory: CodeMemory, store: StencilStore) -> None:
    """Links native bodies that were compiled since, for the next start."""
    if (kept := _kept(FIXED_START)) is None or len(memory.natives) > len(kept.natives):
        _keep(linking.link(store, FIXED_START))
