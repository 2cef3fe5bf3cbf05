"""Commands in the guest, for programs of the host's: the part of a machine that runs them.

    result = machine.exec(["sh", "-c", "echo out; exit 7"])
    result.status, result.stdout                            # 7, b"out\\n"

They go through an agent in the guest (`agent.py`), which ready images bring with them; no network, no password.  Any thread may use them.
`exec` and a process's `wait` have twins for asyncio, `aexec` and `await_end`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ringfence.core.clock import Clock
from ringfence.core.late import LateModule
from ringfence.machine.executor import DeviceThread

if TYPE_CHECKING:
    from ringfence.devices.virtio.serial import VirtioSerial
    from ringfence.machine import agent, files, guest_process
    from ringfence.machine.guest_process import GuestProcess, Result
else:  # where there is an agent
    agent = LateModule("ringfence.machine.agent")
    files = LateModule("ringfence.machine.files")
    guest_process = LateModule("ringfence.machine.guest_process")

READY_S = 120.0


class GuestCommands:
    """The part of a machine that runs commands in its guest."""

    _loop: DeviceThread
    clock: Clock

    def _init_commands(self, ports: VirtioSerial | None) -> None:
        self._agent = None if ports is None else agent.GuestAgent(ports, self.clock, self._agent_is)
        self._agent_changed = threading.Condition()
        self._agent_ready = False
        self._commands_ended = False
        self._processes: set[GuestProcess] = set()

    def _agent_is(self, ready: bool) -> None:
        with self._agent_changed:
            self._agent_ready = ready
            self._agent_changed.notify_all()

    def _end_commands(self) -> None:
        """The device thread ends."""
        with self._agent_changed:
            self._commands_ended = True
            self._agent_changed.notify_all()
            left = list(self._processes)
        for process in left:
            process.ended(None)

    def _forget(self, process: GuestProcess) -> None:
        with self._agent_changed:
            self._processes.discard(process)

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Until the guest takes commands.  Raises NoAgent, also when the machine ends before."""
        if self._agent is None:
            raise guest_process.NoAgent(
                "The machine has no way to its guest's agent.", "Run a ready image, or add --device agent and the agent to your image."
            )
        with self._agent_changed:
            self._agent_changed.wait_for(lambda: self._agent_ready or self._commands_ended, timeout_s)
            if self._commands_ended:
                raise guest_process.GuestGone(
                    "The machine ended before its guest took commands.", "Look at its console: --serial file:PATH keeps it."
                )
            if not self._agent_ready:
                raise guest_process.NoAgent(f"The guest's agent has not answered within {timeout_s:g} s.", "Look at the machine's console.")

    def popen(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: str | None = None) -> GuestProcess:
        """Starts a command.  Waits for the agent if the guest still starts; raises NoAgent, GuestGone."""
        words = agent.command_words(command, environment or {}, folder)
        self.wait_ready()
        assert self._agent is not None
        process = guest_process.GuestProcess(self._loop, self._agent, words, repr(command[0]), self._forget)
        with self._agent_changed:
            self._processes.add(process)
            gone = self._commands_ended
        if gone:
            process.ended(None)
        return process

    def exec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> Result:
        """Runs a command to its end.  After `timeout_s` it is killed in the guest, and CommandTimeout raised."""
        with self.popen(command, environment=environment, folder=folder) as process:
            return process.communicate(stdin, timeout_s)

    async def aexec(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> Result:
        """`exec` for asyncio."""
        import asyncio  # as long to load as a machine takes to start

        return await asyncio.to_thread(self.exec, command, stdin=stdin, timeout_s=timeout_s, environment=environment, folder=folder)

    def put(self, source: Path | str, target: str) -> None:
        """Copies a file or folder to the guest; into `target`, where that is a folder.  Raises files.CopyError, NoAgent, GuestGone."""
        files.put(self.popen, Path(source), target)

    def get(self, source: str, target: Path | str) -> None:
        """Copies a file or folder of the guest; into `target`, where that is a folder.  Raises files.CopyError, NoAgent, GuestGone."""
        files.get(self.popen, source, Path(target))

    def switch_off(self) -> None:
        """Asks the agent to switch the machine off, with everything written out.  Does not wait."""
        if self._agent is not None:
            self._loop.post(self._agent.switch_off)
