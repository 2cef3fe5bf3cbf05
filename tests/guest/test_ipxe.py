"""iPXE to its prompt, as a kernel with setup code and from its CD: commands, and the screen of its settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ringfence import Machine, MachineSpec
from ringfence.core.errors import UserError
from ringfence.machine.boot import firmware

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

FILES = {"lkrn": ("kernel", Path("/boot/ipxe.lkrn")), "iso": ("cdroms", Path("/usr/lib/ipxe/ipxe.iso"))}
WAIT_S = 60


@pytest.mark.parametrize("kind", FILES)
def test_prompt_commands_and_settings(kind: str) -> None:
    field, path = FILES[kind]
    if not path.is_file():
        pytest.skip("ipxe is not installed here")
    try:
        firmware.find("seabios")
    except UserError as reason:
        pytest.skip(reason.cause)
    with Machine(MachineSpec.build(memory="64M", display="none", timeout=280, **{field: path})) as machine:
        machine.start()
        machine.wait_for_text("Press Ctrl-B for the iPXE command line", 240)
        machine.press("ctrl", "b")
        machine.wait_for_text(re.compile(r"Open Source Network Boot Firmware.*\niPXE>", re.DOTALL), WAIT_S)
        machine.type("echo one two\n")
        machine.wait_for_text(re.compile(r"\niPXE> echo one two\none two\niPXE>"), WAIT_S)
        machine.type("show platform\n")
        machine.wait_for_text("builtin/platform:string = pcbios", WAIT_S)
        machine.type("cpuid --ext 29 && echo long mode || echo old\n")
        machine.wait_for_text("\nlong mode\n", WAIT_S)
        machine.type("set word:string some && iseq ${word} some && echo It is ${word}thing\n")
        machine.wait_for_text("\nIt is something\n", WAIT_S)

        machine.type("config\n")
        machine.wait_for_text(re.compile(r"iPXE configuration settings.*  builtin/.*Ctrl-X - exit", re.DOTALL), WAIT_S)
        for _ in range(2):
            machine.press("down")
        machine.press("enter")
        machine.wait_for_text(re.compile(r"iPXE configuration settings - smbios.*  manufacturer", re.DOTALL), WAIT_S)
        machine.press("ctrl", "x")
        machine.wait_for_text(re.compile(r"\niPXE>\s*$"), WAIT_S)
