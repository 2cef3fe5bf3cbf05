"""Progress on standard error: a bar on a terminal, a line every tenth otherwise.  Prints nothing when nothing takes long."""

from __future__ import annotations

import sys
import time
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from ringfence.core.late import LateModule

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich import progress as rich_progress
else:  # most starts have nothing to show
    rich_console = LateModule("rich.console")
    rich_progress = LateModule("rich.progress")

_QUIET_S = 0.5


class ProgressLine:
    """`report(label, done, total)` as engines call it; a `with` block gives the terminal back."""

    def __init__(self) -> None:
        self._bar: rich_progress.Progress | None = None
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._begun = time.monotonic()

    @cached_property
    def _console(self) -> rich_console.Console:
        return rich_console.Console(stderr=True)

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
            rich = rich_progress
            columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn())
            self._bar = rich.Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        if label not in self._tasks:
            self._tasks[label] = self._bar.add_task(label, total=max(total, 1))
        self._bar.update(self._tasks[label], completed=done, total=max(total, 1))

    def _print_tenths(self, label: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth != self._tenths.get(label):
            self._tenths[label] = tenth
            print(f"ringfence: {label}: {done} of {total}", file=sys.stderr, flush=True)
