"""CPUID and the models: what is announced is what is there, and each generation has what its manual says."""

from __future__ import annotations

import struct

import iced_x86 as iced
import pytest

from ringfence.engine.cpuid import cpuid, has_msr
from ringfence.isa.x86.models import DEFAULT, MODELS, CpuModel

WITH_CPUID = [model for model in MODELS.values() if model.cpuid is not None]


def exists(model: CpuModel, code: str, bits: int = 32) -> bool:
    instruction = iced.Decoder(bits, bytes.fromhex(code).ljust(15, b"\0")).decode()
    assert instruction.code != iced.Code.INVALID
    return not model.refuses(instruction)


@pytest.mark.parametrize("model", WITH_CPUID, ids=lambda m: m.name)
def test_family_and_vendor(model: CpuModel) -> None:
    largest, *text = cpuid(model, 0, 0, 0, 1, True)
    assert struct.pack("<3I", text[0], text[2], text[1]) in (b"GenuineIntel", b"AuthenticAMD")
    assert 1 <= largest <= 7
    assert cpuid(model, 1, 0, 0, 1, True)[0] == model.signature


@pytest.mark.parametrize("model", WITH_CPUID, ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("bit", "code"),
    [
        (0, "d9e8"),  # FLD1
        (4, "0f31"),  # RDTSC
        (5, "0f32"),  # RDMSR
        (8, "0fc70e"),  # CMPXCHG8B
        (11, "0f34"),  # SYSENTER
        (15, "0f44c1"),  # CMOVE
        (19, "0fae3e"),  # CLFLUSH
        (23, "0f77"),  # EMMS
        (24, "0fae06"),  # FXSAVE
        (25, "0f58c1"),  # ADDPS
        (26, "660f58c1"),  # ADDPD
    ],
)
def test_what_is_announced_is_there(model: CpuModel, bit: int, code: str) -> None:
    edx = cpuid(model, 1, 0, 0, 1, True)[3]
    assert bool(edx >> bit & 1) == exists(model, code)


@pytest.mark.parametrize(
    ("bit", "code"), [(0, "f20fd0c1"), (9, "0f3800c1"), (13, "480fc70e"), (19, "660f3817c1"), (20, "f20f38f0c1"), (23, "f30fb8c1")]
)
def test_what_v2_adds(bit: int, code: str) -> None:
    for model in (MODELS["x86-64"], MODELS["x86-64-v2"]):
        assert bool(cpuid(model, 1, 0, 0, 1, True)[2] >> bit & 1) == exists(model, code, 64) == (model is DEFAULT)


def test_the_platform_has_a_number_from_the_pentium_2_to_amds_models() -> None:
    assert [model.name for model in MODELS.values() if has_msr(model, 0x17)] == ["pentium2", "pentium3"]


def test_the_apic_may_be_off() -> None:
    assert cpuid(DEFAULT, 1, 0, 0, 1, True)[3] ^ cpuid(DEFAULT, 1, 0, 0, 1, False)[3] == 1 << 9


def test_leaves_beyond_the_last() -> None:
    """Intel's answer as for the last one, AMD's are empty."""
    intel = MODELS["pentium3"]
    assert cpuid(intel, 0x80000000, 0, 0, 1, True) == cpuid(intel, 2, 0, 0, 1, True)
    assert cpuid(DEFAULT, 8, 0, 0, 1, True) == (0, 0, 0, 0)
    assert cpuid(DEFAULT, 0x80000009, 0, 0, 1, True) == (0, 0, 0, 0)


def test_the_hypervisor_shows_itself_to_modern_guests_only() -> None:
    assert struct.pack("<3I", *cpuid(DEFAULT, 0x40000000, 0, 0, 1, True)[1:]) == b"KVMKVMKVM\0\0\0"
    assert cpuid(DEFAULT, 0x40000010, 0, 0, 4242, True)[0] == 4242
    assert cpuid(MODELS["pentium"], 0x40000000, 0, 0, 1, True) == cpuid(MODELS["pentium"], 1, 0, 0, 1, True)


def test_no_cpuid_before_the_pentium() -> None:
    assert [m.name for m in MODELS.values() if m.cpuid is None] == ["8086", "80186", "286", "386", "486"]
    assert all(exists(m, "0fa2") == (m.cpuid is not None) for m in MODELS.values())


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("d6", "8086"),  # SALC
        ("60", "80186"),  # PUSHA
        ("c1e003", "80186"),  # SHL by a constant
        ("0f01e0", "286"),  # SMSW
        ("0fb6c1", "386"),  # MOVZX
        ("d9fe", "386"),  # FSIN
        ("0fc8", "486"),  # BSWAP
        ("0f013e", "486"),  # INVLPG
        ("0fa2", "pentium"),
        ("0f1f00", "pentium-pro"),
    ],
)
def test_generations(code: str, first: str) -> None:
    order = list(MODELS)
    for model in MODELS.values():
        if model.name != "pentium-mmx":  # beside the line: the Pentium Pro has no MMX
            assert exists(model, code, 32 if model.generation >= 386 else 16) == (order.index(model.name) >= order.index(first)), model.name


def test_registers_grow() -> None:
    """Nothing that a generation had is lost later."""
    models = [m for m in MODELS.values() if m.name != "pentium-mmx"]
    for older, newer in zip(models, models[1:], strict=False):
        assert older.extensions - {"INTEL8086_ONLY"} <= newer.extensions
        assert older.address_bits <= newer.address_bits
        assert older.flags_settable & ~newer.flags_settable == 0
        assert older.cr4_settable & ~newer.cr4_settable == 0
        if older.generation != 286:
            assert older.cr0_settable & ~newer.cr0_settable == 0
    assert all(m.flags_settable & m.flags_fixed == 0 for m in models)


def test_rep_nop_is_a_nop_before_pause() -> None:
    for model in MODELS.values():
        instruction = iced.Decoder(32, b"\xf3\x90", model.decoder_options).decode()
        assert instruction.mnemonic == (iced.Mnemonic.PAUSE if model.generation == 786 else iced.Mnemonic.NOP)
        assert not model.refuses(instruction)


def test_cores_of_one_package() -> None:
    """The legacy method of AMD's manual: HTT and CmpLegacy, the number of cores, the bits of the APIC id that tell them apart."""
    for number in range(6):
        _, ebx, _, edx = cpuid(DEFAULT, 1, 0, number, 1, True, 6)
        assert ebx >> 24 == number and ebx >> 16 & 0xFF == 6 and edx >> 28 & 1
    assert cpuid(DEFAULT, 0x80000001, 0, 0, 1, True, 6)[2] >> 1 & 1
    assert cpuid(DEFAULT, 0x80000008, 0, 0, 1, True, 6)[2] == 3 << 12 | 5
    assert not cpuid(DEFAULT, 1, 0, 0, 1, True)[3] >> 28 & 1 and cpuid(DEFAULT, 0x80000008, 0, 0, 1, True)[2] == 0


def test_older_cpus_are_packages_of_their_own() -> None:
    _, ebx, _, edx = cpuid(MODELS["pentium3"], 1, 0, 3, 1, True, 4)
    assert ebx >> 24 == 3 and not edx >> 28 & 1
