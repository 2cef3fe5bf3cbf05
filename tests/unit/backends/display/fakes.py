"""A seat in front of no machine: the test paints its screen and reads what was typed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from ringfence.backends.api import Frame, TextScreen
from ringfence.backends.display.pixels import Rgb

WAIT_S = 10.0


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class FakeSeat:
    """Answers on a thread of its own, as a machine does."""

    def __init__(self, picture: Rgb) -> None:
        self.picture = picture
        self.characters: TextScreen | None = None
        self.looks = 0
        self.keys: list[tuple[int, bool]] = []
        self.moves: list[tuple[int, int, int]] = []
        self.masks: list[int] = []
        self._posted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (function := self._posted.get()) is not None:
            function()

    def close(self) -> None:
        self._posted.put(None)
        self._thread.join(WAIT_S)

    def frame(self) -> Frame:
        height, width = self.picture.shape[:2]
        return Frame(width, height, self.picture.tobytes())

    def look(self, show: Callable[[Frame], None]) -> None:
        self.looks += 1
        self._posted.put(lambda: show(self.frame()))

    def read(self, show: Callable[[TextScreen | Frame], None]) -> None:
        self.looks += 1
        self._posted.put(lambda: show(self.characters or self.frame()))

    def key(self, code: int, down: bool) -> None:
        self.keys.append((code, down))

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        self.moves.append((dx, dy, dz))

    def buttons(self, mask: int) -> None:
        self.masks.append(mask)


def noise(width: int, height: int, seed: int = 1) -> Rgb:
    """Every pixel another colour, with areas of few colours as screens have."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture[: height // 4] = (0, 0, 170)
    stripes = np.array([(0, 0, 0), (170, 170, 170)], np.uint8)
    picture[height // 4 : height // 2] = stripes[random.integers(0, 2, (height // 2 - height // 4, width))]
    few = random.integers(0, 256, (13, 3), dtype=np.uint8)
    picture[height // 2 : height * 3 // 4] = few[random.integers(0, 13, (height * 3 // 4 - height // 2, width))]
    return picture
