from __future__ import annotations

import pytest

from ringfence.machine.boot import aml


def test_integers_take_their_shortest_form() -> None:
    assert [aml.term(n) for n in (0, 1, 2, 0x100, 0x10000, 1 << 32)] == [
        b"\x00",
        b"\x01",
        b"\x0a\x02",
        b"\x0b\x00\x01",
        b"\x0c\x00\x00\x01\x00",
        b"\x0e\x00\x00\x00\x00\x01\x00\x00\x00",
    ]
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64-bit"):
            aml.term(value)


def test_names() -> None:
    assert aml.name_path("\\_SB") == b"\\_SB_"
    assert aml.name_path("_SB.PCI0") == b"\x2e_SB_PCI0"
    assert aml.name_path("\\_SB.PCI0.S1") == b"\\\x2f\x03_SB_PCI0S1__"
    for bad in ("TOOLONG", "1ABC", "low", "", "A-B"):
        with pytest.raises(ValueError, match="no ACPI name"):
            aml.name_path(bad)


@pytest.mark.parametrize(("body_bytes", "length_bytes"), [(0, 1), (62, 1), (63, 2), (4093, 2), (4094, 3), (1 << 17, 3)])
def test_package_length_counts_itself(body_bytes: int, length_bytes: int) -> None:
    encoded = aml._package_length(body_bytes)
    assert len(encoded) == length_bytes
    assert encoded[0] >> 6 == length_bytes - 1
    value = encoded[0] & (0x3F if length_bytes == 1 else 0xF)
    value |= int.from_bytes(encoded[1:], "little") << 4
    assert value == body_bytes + length_bytes


def test_eisa_ids() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"


def test_resource_template_is_a_buffer_with_an_end_tag() -> None:
    assert aml.resources(aml.io_ports(0x3F8, 8), aml.irq(4)) == (
        b"\x11\x10\x0a\x0d" + b"\x47\x01\xf8\x03\xf8\x03\x01\x08" + b"\x22\x10\x00" + b"\x79\x00"
    )


def test_method_returns() -> None:
    assert aml.method("_STA", 0, aml.return_(15)) == b"\x14\x09_STA\x00\xa4\x0a\x0f"
