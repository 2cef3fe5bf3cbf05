"""Memory that its owner forgets to close leaves no file descriptor behind: a program may make many machines."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

import pytest

from ringfence.cli import main
from ringfence.memory.guest_memory import GuestMemory
from ringfence.translate.code_memory import CodeMemory

PAGE_BYTES = 4096


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def guest_memory() -> GuestMemory:
    memory = GuestMemory()
    memory.add_ram(0, PAGE_BYTES, "forgotten")
    return memory


def two_vcpus() -> tuple[CodeMemory, CodeMemory]:
    first = CodeMemory(ram_pages=1)
    return first, CodeMemory(1, first)


@pytest.mark.parametrize("make", [guest_memory, two_vcpus])
def test_what_is_forgotten_is_closed(make: Callable[[], object]) -> None:
    before: set[str] = set()
    while before != (before := open_descriptors()):  # what earlier tests left behind takes more than one turn
        gc.collect()
    made = make()
    its = open_descriptors() - before
    assert its
    del made
    gc.collect()
    assert not its & open_descriptors()


def test_closing_twice_closes_nothing_of_somebody_else() -> None:
    memory = guest_memory()
    memory.close()
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
    memory.close()
    for fd in others:
        os.close(fd)


def test_the_command_leaves_the_collector_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ringfence", "exec", "no-such-machine", "--", "true"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == main.USER_ERROR_STATUS and "running" in capsys.readouterr().err
    assert gc.isenabled()
