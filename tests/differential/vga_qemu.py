"""QEMU's standard VGA, driven over its qtest protocol: ports and memory without a guest, and dumps of the screen."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, TextIO

_BATCH = 400
_START_S = 20


class QemuVga:
    """Methods are named like those of `tests.unit.devices.vga_rig.Rig`.  Writes are sent in batches, before the next read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sockets = folder / "qtest", folder / "qmp"
        command = "qemu-system-x86_64 -S -machine pc -m 32 -nodefaults -vga std -display none -qtest-log none".split()
        for name, path in zip(("-qtest", "-qmp"), sockets, strict=True):
            command += [name, f"unix:{path},server=on,wait=off"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._qtest, self._qmp = (self._connect(path) for path in sockets)
        self._qmp.readline()
        self._ask_qmp("qmp_capabilities")
        self._waiting: list[str] = []

    def _connect(self, path: Path) -> TextIO:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(path))
                return connection.makefile("rw")
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ask_qmp(self, command: str, **arguments: Any) -> None:
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while True:
            answer = json.loads(self._qmp.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return

    def _flush(self) -> None:
        for k in range(0, len(self._waiting), _BATCH):
            lines = self._waiting[k : k + _BATCH]
            self._qtest.write("".join(f"{line}\n" for line in lines))
            self._qtest.flush()
            for line in lines:
                answer = self._qtest.readline()
                assert answer.startswith("OK"), (line[:80], answer)
        self._waiting = []

    def _ask(self, line: str) -> str:
        self._flush()
        self._qtest.write(line + "\n")
        self._qtest.flush()
        return self._qtest.readline().split()[1]

    def out(self, port: int, value: int) -> None:
        self._waiting.append(f"outb {port:#x} {value:#x}")

    def out16(self, port: int, value: int) -> None:
        self._waiting.append(f"outw {port:#x} {value:#x}")

    def read_port(self, port: int) -> int:
        return int(self._ask(f"inb {port:#x}"), 16)

    def read_port16(self, port: int) -> int:
        return int(self._ask(f"inw {port:#x}"), 16)

    def poke(self, address: int, *values: int) -> None:
        for k in range(0, len(values), 4096):
            part = bytes(values[k : k + 4096])
            self._waiting.append(f"write {address + k:#x} {len(part):#x} 0x{part.hex()}")

    def peek(self, address: int, count: int = 1) -> bytes:
        return bytes.fromhex(self._ask(f"read {address:#x} {count:#x}")[2:])

    def picture(self) -> tuple[int, int, bytes]:
        """Width, height, and three bytes a pixel."""
        self._flush()
        path = self._folder / "screen.ppm"
        self._ask_qmp("screendump", filename=str(path))
        _, size, _, pixels = path.read_bytes().split(b"\n", 3)
        width, height = size.split()
        return int(width), int(height), pixels
