"""Memtest86+ of 32 and 64 bits: its menus by keys, then a whole pass over 64 MiB without an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ringfence import Machine, MachineSpec
from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]


@pytest.mark.parametrize("bits", ["ia32", "x64"])
def test_a_whole_pass(bits: str) -> None:
    kernel = Path(f"/boot/memtest86+{bits}.bin")
    if not kernel.is_file():
        pytest.skip("memtest86+ is not installed here")
    try:
        firmware.find("seabios")
    except UserError as reason:
        pytest.skip(reason.cause)
    with Machine(MachineSpec.build(memory="64M", display="none", timeout=390, kernel=kernel)) as machine:
        machine.start()
        machine.wait_for_text("<F1> Configuration", 200)
        # The last test waits for three minutes whether bits fade; it is taken out.
        for key, wanted in (
            ("f1", "Settings:"),
            ("f1", "Test Selection:"),
            ("f2", "Enter test #"),
            ("1", "Enter test #1"),
            ("0", "Enter test #10"),
            ("enter", re.compile(r"0─+10\n +\*\.\*{8}\.")),
            ("f10", "Settings:"),
        ):
            machine.press(key)
            machine.wait_for_text(wanted, 60)
        machine.press("f10")
        machine.wait_for_text(re.compile(r"Test #[1-9].*Errors: 0", re.DOTALL), 100)
        text = machine.wait_for_text(re.compile(r"Pass: +1 |Errors: +[1-9]"), 300)
        assert re.search(r"Status: Pass.*\n.*Pass: +1 +Errors: 0", text), text
        assert "Ringfence" in text
