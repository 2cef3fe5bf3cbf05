"""The small parts of an old PC in a running machine: keyboard, mouse, A20, printer port, test device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringfence.devices.keymap import CODES, KEYS
from ringfence.machine.machine import Machine
from ringfence.machine.spec import MachineSpec
from tests.guest.bare import PASS, build, run, run_program
from tests.guest.guests import MOUNTS, debian_cloud_kernel, initramfs

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]
PARTS = ("--display", "none", "--device", "testdev")


def test_by_polling_and_by_interrupt(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    run_program(tmp_path, "legacy", *PARTS, "--parallel", f"file:{printed}", "--board", "pc")
    assert printed.read_bytes() == b"printed by interrupt\r\nand by polling\r\n"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_at_random(tmp_path: Path, seed: int) -> None:
    kernel = build(tmp_path, "hostile_legacy", SEED=seed, ROUNDS=60000)
    result = run(kernel, *PARTS, "--parallel", f"file:{tmp_path / 'printed'}", board="pc", timeout_s=120).sound(700 << 20)
    assert result.status == PASS, result.story


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def test_linux_knows_every_key_and_the_mouse(tmp_path: Path) -> None:
    """The kernel's own drivers are the judge of the key table, of LEDs and of the mouse's protocol."""
    kernel = debian_cloud_kernel()
    modules = {f"{name}.ko": kernel.module(name).read_bytes() for name in ("evdev", "serio_raw")}
    init = MOUNTS + (
        "stty -echo\ninsmod /evdev.ko\ninsmod /serio_raw.ko\n"
        "echo -n serio_raw >/sys/bus/serio/devices/serio1/drvctl\n"
        "echo ready\nwhile read -r line; do eval \"$line\"; done\n"
    )  # fmt: skip
    spec = MachineSpec(
        kernel=kernel.image, initrd=(initramfs(tmp_path, init, modules),), append="console=ttyS0 quiet panic=-1", display="none"
    )
    with Machine(spec) as machine:
        machine.start()
        console = machine.console
        console.wait_for(b"ready", 120)

        def ask(command: str) -> str:
            console.send(f"{command}; echo DO''NE\n")
            return console.wait_for(b"DONE", 60).decode().removesuffix("DONE")

        probed = ask("dmesg | grep -e i8042 -e serio -e input:")
        assert "PNP0303:KBD,PNP0f13:MOU" in probed and "AT Translated Set 2 keyboard" in probed, probed
        keyboard, mouse = machine.board.keyboard, machine.board.mouse
        assert keyboard is not None and mouse is not None

        ask("echo 1 | tee /sys/class/leds/*::capslock/brightness")
        wait_until(lambda: keyboard.leds == 4)

        # Linux reserves no number for the keys F13 to F24 where Windows has them.
        codes = [code for code in KEYS if not CODES["f13"] <= code <= CODES["f24"]]
        ask("cat /dev/input/$(cd /sys/devices/platform/i8042/serio0/input/input*; echo event*) >/tmp/events & sleep 1")
        expected = []
        for code in codes:
            for down in (True, False):
                struck = threading.Event()

                def strike(code: int = code, down: bool = down, struck: threading.Event = struck) -> None:
                    keyboard.key(code, down)
                    struck.set()

                machine.on_device_thread(strike)
                expected.append((code, int(down)))
                assert struck.wait(20)
                wait_until(lambda: not keyboard.backlog_bytes)
                time.sleep(0.01)  # evdev keeps 64 events for a reader that does not get its turn
        dump = ask('sleep 1; kill $!; hexdump -v -e \'12/2 "%u " "\\n"\' /tmp/events')
        events = [line.split() for line in dump.splitlines()]
        assert not [e for e in events if e[8:10] == ["0", "3"]], "SYN_DROPPED"
        assert [(int(e[9]), int(e[10])) for e in events if len(e) == 12 and e[8] == "1"] == expected

        ask("cat /dev/serio_raw0 >/tmp/mouse & sleep 1")
        ask("printf '\\xf3\\xc8\\xf3\\x64\\xf3\\x50\\xf2\\xf4' >/dev/serio_raw0; sleep 1")
        machine.on_device_thread(lambda: mouse.move(5, -300, 1))
        machine.on_device_thread(lambda: mouse.buttons(1))
        answers = ask("sleep 1; kill $!; hexdump -v -e '1/1 \"%02x \"' /tmp/mouse")
        assert answers.split() == "fa fa fa fa fa fa fa 03 fa 08 05 ff ff 09 00 2d 00".split()
        console.send("poweroff -f\n")
        assert machine.wait(60).code == 0
