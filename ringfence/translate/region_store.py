"""Compiled regions by the bytes that they were made from; kept in the user's cache from run to run.

A region is found by any of its instructions: offset in the page and the first bytes there.  Whoever finds one compares all its bytes with
the guest's before it is used, so a file that is stale for this guest is never executed for it.  What was refused is known by a digest of
the pages that were looked at: the compiler's process need not start for it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ringfence.core.cache_files import read_cache, write_cache
from ringfence.translate.region_compiler import CompiledRegion, Request
from ringfence.translate.sources import BLOCKS, cache_path

NAME_BYTES = 16
MAX_REGIONS = 1500
MAX_REFUSED = 10_000
Name = tuple[int, int, bytes]


class RegionStore:
    """`keep`: whether the user's cache is read and written."""

    def __init__(self, model: str, keep: bool) -> None:
        self._by_name: dict[Name, list[int]] = {}
        self._regions: list[CompiledRegion] = []
        self._known: set[tuple[int, tuple[int, ...], tuple[tuple[int, bytes], ...]]] = set()
        self._refused: set[bytes] = set()
        self._path = cache_path(f"regions-{model}", BLOCKS) if keep else None
        self._read()
        self.changed = False

    def _read(self) -> None:
        if self._path is None or (kept := read_cache(self._path)) is None:
            return
        regions, refused = kept
        for fields in regions:
            self.add(CompiledRegion(*fields))
        self._refused.update(refused)

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, region: CompiledRegion) -> None:
        identity = (region.table, region.entries, region.content)
        if identity in self._known or len(self._regions) >= MAX_REGIONS:
            return
        self._known.add(identity)
        number = len(self._regions)
        self._regions.append(region)
        self.changed = True
        content = dict(region.content)
        for place in region.blocks:
            for low, data in content.items():
                if low <= place < low + len(data):
                    first = data[place - low : place - low + NAME_BYTES]
                    self._by_name.setdefault((region.table, place & 0xFFF, first), []).append(number)

    def find(self, table: int, offset: int, data: bytes) -> Iterator[tuple[CompiledRegion, int]]:
        """Regions with a block at this offset of a page, where `data` is; and the number that the page has in the region."""
        for length in range(NAME_BYTES, 0, -1):
            for number in self._by_name.get((table, offset, data[:length]), ()):
                region = self._regions[number]
                for place in region.blocks:
                    if place & 0xFFF == offset:
                        yield region, place >> 12

    def refuse(self, request: Request) -> None:
        """Nothing can be made of these pages, whatever others there are."""
        if len(self._refused) < MAX_REFUSED:
            self._refused.add(_digest(request))
            self.changed = True

    def is_refused(self, request: Request) -> bool:
        return _digest(request) in self._refused

    def save(self) -> None:
        if self._path is None or not self.changed:
            return
        self._read()  # another process may have added some meanwhile
        if write_cache(self._path, ([tuple(r) for r in self._regions], sorted(self._refused))):
            self.changed = False


def _digest(request: Request) -> bytes:
    found = hashlib.blake2b(f"{request.seed} {request.mode} {request.table}".encode(), digest_size=12)
    for number, data in sorted(request.pages.items()):
        found.update(number.to_bytes(2, "little", signed=True))
        found.update(data)
    return found.digest()
