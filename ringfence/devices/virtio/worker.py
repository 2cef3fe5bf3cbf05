"""One thread that works off a device's slow jobs in order and hands them back on the device thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from ringfence.devices.api import Executor


class Job(Protocol):
    def perform(self) -> None:
        """On the worker's thread: touches neither guest memory nor the device."""


J = TypeVar("J", bound=Job)


class Worker(Generic[J]):
    """All methods are for the device thread.  The thread exists from the first `submit` to the next `stop`."""

    def __init__(self, name: str, executor: Executor, finished: Callable[[list[J]], None]) -> None:
        """`finished` gets jobs that were performed, in order; on the device thread."""
        self._name = name
        self._executor = executor
        self._finished = finished
        self._jobs: SimpleQueue[J | None] = SimpleQueue()
        self._done: deque[J] = deque()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self.pending = 0  # submitted and not yet given to `finished`

    def submit(self, job: J) -> None:
        self.pending += 1
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Returns when every job was performed and given to `finished`, and the thread has ended."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._hand_back()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.perform()
            except Exception as failure:  # a fault of ours: raised again where the machine can report it
                self._failure = failure
            self._done.append(job)
            self._executor.post(self._hand_back)

    def _hand_back(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        jobs = []
        while self._done:
            jobs.append(self._done.popleft())
        if jobs:
            self.pending -= len(jobs)
            self._finished(jobs)
