"""Compressed clusters of qcow2: raw deflate (RFC 1951) or Zstandard (RFC 8878), output bounded by the cluster size."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringfence.backends.block.hostfile import DamagedImage
from ringfence.backends.block.qcow2_format import Header
from ringfence.core.late import LateModule
from ringfence.core.units import MIB

if TYPE_CHECKING:
    import zstandard
else:  # few images use it
    zstandard = LateModule("zstandard")

_CACHE_BYTES = 4 * MIB
_MAX_ZSTD_WINDOW_BYTES = 8 * MIB  # what RFC 8878, 3.1.1.1.2 recommends decoders to support


class Decompressor:
    """Keeps the clusters used last: a guest reads a cluster in many small pieces."""

    def __init__(self, header: Header) -> None:
        self._name = header.name
        self._cluster_bytes = header.cluster_bytes
        self._expand = self._zstd if header.zstd else self._deflate
        self._cache: dict[int, bytes] = {}
        self._max_clusters = max(2, _CACHE_BYTES // header.cluster_bytes)

    def cluster(self, descriptor: int, load: Callable[[], bytes | bytearray]) -> bytes:
        """The cluster with this descriptor; `load` gives its compressed bytes, perhaps with others behind them."""
        data = self._cache.pop(descriptor, None)
        if data is None:
            try:
                data = self._expand(load())
            except (zlib.error, zstandard.ZstdError, MemoryError) as error:
                raise DamagedImage(self._name, f"a compressed cluster cannot be read ({error})") from error
            if len(data) != self._cluster_bytes:
                raise DamagedImage(self._name, "a compressed cluster is too short")
            if len(self._cache) >= self._max_clusters:
                del self._cache[next(iter(self._cache))]
        self._cache[descriptor] = data
        return data

    def _deflate(self, data: bytes | bytearray) -> bytes:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self._cluster_bytes)

    def _zstd(self, data: bytes | bytearray) -> bytes:
        with zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW_BYTES).stream_reader(data) as reader:
            return reader.read(self._cluster_bytes)
