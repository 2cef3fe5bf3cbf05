"""Entropy device.  OASIS VIRTIO 1.2, section 5.4: one queue of buffers that the device fills with random bytes."""

from __future__ import annotations

import os
from collections.abc import Callable

from ringfence.devices.virtio.buffers import scatter
from ringfence.devices.virtio.device import VirtioDevice

# 5.4.6.2 lets a device fill less than was asked for: one request must not hold up the machine.
MAX_BYTES_PER_REQUEST = 4096


class VirtioRng(VirtioDevice):
    device_id = 4
    queue_sizes = (64,)

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom, name: str = "virtio-rng") -> None:
        """`entropy(n)` gives n random bytes at once."""
        super().__init__(name)
        self._entropy = entropy

    def process(self, queue_index: int) -> None:
        queue = self.queues[queue_index]
        for chain in queue.chains():
            data = self._entropy(min(chain.writable_bytes, MAX_BYTES_PER_REQUEST))
            queue.push(chain, scatter(self.memory, chain.writable, data))
        self.signal(queue_index)
