"""Progress on standard error: a bar on a terminal, a line every tenth otherwise.  Prints nothing when nothing takes long."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_QUIET_S = 0.5


class ProgressLine:
    """`report(label, done, total)` as engines call it; a `with` block gives the terminal back."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._begun = time.monotonic()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, label: str, done: int, total: int) -> None:
        if time.monotonic() - self._begun < _QUIET_S and label not in self._tasks:
            return
        if self._console.is_terminal:
            self._show_bar(label, done, total)
        else:
            self._print_tenths(label, done, total)

    def _show_bar(self, label: str, done: int, total: int) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        if label not in self._tasks:
            self._tasks[label] = self._bar.add_task(label, total=max(total, 1))
        self._bar.update(self._tasks[label], completed=done, total=max(total, 1))

    def _print_tenths(self, label: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth != self._tenths.get(label):
            self._tenths[label] = tenth
            print(f"ringfence: {label}: {done} of {total}", file=sys.stderr, flush=True)
