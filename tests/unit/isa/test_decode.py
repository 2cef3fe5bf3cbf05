"""From bytes to forms: names, slots, shapes."""

from __future__ import annotations

import pytest

import ringfence.isa.x86.bodies  # noqa: F401
from ringfence.isa.x86.context import MemForm
from ringfence.isa.x86.decode import Decoded, decode

PAGE = 0x7000


def one(text: str, ip: int = PAGE + 0x10) -> Decoded:
    decoded = decode(bytes.fromhex(text).ljust(15, b"\xcc"), ip)
    assert decoded is not None
    return decoded


@pytest.mark.parametrize(
    ("raw", "name", "size", "binds", "imms"),
    [
        ("4801d8", "add", 64, {0: ("rax", 0), 1: ("rbx", 0)}, {}), ("00fc", "add", 8, {0: ("rax", 8), 1: ("rbx", 8)}, {}),
        ("4000fc", "add", 8, {0: ("rsp", 0), 1: ("rdi", 0)}, {}), ("6683c0ff", "add", 16, {0: ("rax", 0)}, {1: 0xFFFF}),
        ("4883c0ff", "add", 64, {0: ("rax", 0)}, {1: (1 << 64) - 1}), ("b8ffffffff", "mov", 32, {0: ("rax", 0)}, {1: 0xFFFFFFFF}),
        ("48c7c0ffffffff", "mov", 64, {0: ("rax", 0)}, {1: (1 << 64) - 1}), ("6a80", "push", 64, {}, {0: (1 << 64) - 128}),
        ("6653", "push", 16, {0: ("rbx", 0)}, {}), ("0fb6c4", "movzx", 32, {0: ("rax", 0), 1: ("rax", 8)}, {}),
        ("f3a4", "rep movs", 8, {}, {}), ("f248af", "repne scas", 64, {0: ("rax", 0)}, {}), ("f248a5", "rep movs", 64, {}, {}), ("a6",
        "cmps", 8, {}, {}),
        ("f20f10c1", "movsd_sse", 128, {0: ("xmm0", 0), 1: ("xmm1", 0)}, {}), ("0f20d8", "mov from cr3", 64, {0: ("rax", 0)}, {}),
        ("8ed8", "mov ds", 64, {0: ("rax", 0)}, {}), ("9d", "popf", 64, {}, {}), ("669d", "popf", 16, {}, {}), ("48cf",
        "iretq", 64, {}, {}),
        ("48cb", "retf", 64, {}, {}), ("cb", "retf", 32, {}, {}), ("66cb", "retf", 16, {}, {}), ("ff28",
        "jmp far", 64, {"base": ("rax", 0)}, {}),
        ("ff20", "jmp", 64, {"base": ("rax", 0)}, {}), ("f30fbcc1", "bsf", 32, {0: ("rax", 0), 1: ("rcx", 0)}, {}),
    ],
)  # fmt: skip
def test_names_and_slots(raw: str, name: str, size: int, binds: dict[object, tuple[str, int]], imms: dict[object, int]) -> None:
    decoded = one(raw)
    assert (decoded.form.name, decoded.length) == (name, len(bytes.fromhex(raw)))
    if not name.startswith(("mov ds", "jmp far")):
        assert decoded.form.size == size
    assert decoded.binds == binds
    assert {k: v for k, v in decoded.imms.items() if isinstance(k, int)} == imms
    assert decoded.imms["next"] == 0x10 + decoded.length


@pytest.mark.parametrize(
    ("raw", "shape", "displacement"),
    [
        ("488b00", MemForm(base=True), None), ("488b4080", MemForm(base=True, disp=True), -128),
        ("488b4424f8", MemForm(base=True, disp=True, base_is_rsp=True), -8),
        ("488b04c8", MemForm(base=True, index=True, scale=3), None),
        ("488b04cd00000080", MemForm(index=True, scale=3, disp=True), -0x80000000),
        ("488b042500000080", MemForm(disp=True), -0x80000000), ("67488b042500000080", MemForm(disp=True, address32=True), 0x80000000),
        ("65488b00", MemForm(base=True, segment="gs"), None), ("64488b042528000000", MemForm(disp=True, segment="fs"), 0x28),
        ("2e488b00", MemForm(base=True), None), ("67488b00", MemForm(base=True, address32=True), None),
    ],
)  # fmt: skip
def test_memory_shapes(raw: str, shape: MemForm, displacement: int | None) -> None:
    decoded = one(raw)
    assert decoded.form.mem == shape
    assert decoded.imms.get("disp") == (None if displacement is None else displacement & (1 << 64) - 1)


def test_rip_relative_counts_from_the_page() -> None:
    """So the same bytes at the same place of any page have the same immediates."""
    for page in (0x7000, 0xFFFF_FFFF_8100_0000):
        decoded = one("488b0500010000", page + 0x10)
        assert decoded.form.mem == MemForm(disp=True, rip=True) and decoded.imms["disp"] == 0x10 + 7 + 0x100


def test_branch_targets() -> None:
    assert one("ebfe").target == PAGE + 0x10
    assert one("e800010000").target == PAGE + 0x10 + 5 + 0x100
    assert one("0f84fcffffff").target == PAGE + 0x10 + 2
    assert one("ffe0").target is None


def test_immediates_that_choose_what_a_body_does_belong_to_the_form() -> None:
    assert one("660f70c11b").form != one("660f70c11c").form
    assert one("c1e003").form != one("c1e004").form
    assert one("83c003").form == one("83c004").form


def test_lock_belongs_to_the_form() -> None:
    assert one("f00118").form.lock and not one("0118").form.lock
    assert one("f00118").form.name == "add"


def test_more_bytes_are_asked_for() -> None:
    assert decode(b"", 0) is None and decode(b"\x48", 0) is None and decode(bytes.fromhex("48b80011"), 0) is None


def test_the_linear_address_wraps() -> None:
    assert one("90", (1 << 64) - 1).length == 1
