"""The key table against the facts that other tables of the same thing state."""

from __future__ import annotations

import string

from ringfence.devices.keymap import CODES, KEYS, SET2_TO_SET1, for_character, to_set1


def test_the_first_83_keys_are_numbered_as_in_set_1() -> None:
    """Linux took its numbers from there."""
    assert all(KEYS[code].set1 == code for code in range(1, 84))


def test_the_table_of_the_8042_loses_nothing() -> None:
    assert len(SET2_TO_SET1) == 256
    assert sorted(SET2_TO_SET1[1:128]) == list(range(1, 128)) and SET2_TO_SET1[0] == 0xFF
    assert [n for n in range(128, 256) if SET2_TO_SET1[n] != n] == [0x83, 0x84]


def test_codes_are_unique() -> None:
    for codes in ([k.set1 for k in KEYS.values()], [k.set2 for k in KEYS.values()], [k.set3 for k in KEYS.values() if k.set3]):
        assert len(codes) == len(set(codes))
    assert len(CODES) == len(KEYS)


def test_some_extended_keys_in_set_1() -> None:
    expected = {"rightctrl": 0xE01D, "home": 0xE047, "delete": 0xE053, "leftmeta": 0xE05B, "sysrq": 0xE037, "pause": 0xE046, "mute": 0xE020}
    assert {name: KEYS[CODES[name]].set1 for name in expected} == expected
    assert KEYS[CODES["power"]].set1 == 0xE05E and KEYS[CODES["sleep"]].set1 == 0xE05F and KEYS[CODES["wakeup"]].set1 == 0xE063


def test_every_printable_ascii_character_can_be_typed() -> None:
    typed = {c: for_character(c) for c in string.printable if c not in "\x0b\x0c"}
    assert None not in typed.values()
    assert len({v for c, v in typed.items() if c != "\r"}) == len(typed) - 1
    assert for_character("a") == (30, False) and for_character("A") == (30, True)
    assert for_character("\n") == for_character("\r") == (28, False) and for_character("\x1b") == (1, False)
    assert for_character("|") == (43, True) and for_character("~") == (41, True) and for_character('"') == (40, True)
    assert for_character("é") is None and for_character("") is None


def test_translation_of_sequences() -> None:
    assert to_set1(bytes.fromhex("e1 14 77 e1 f0 14 f0 77")).hex() == "e11d45e19dc5"
    assert to_set1(bytes.fromhex("e0 f0 75 f0 83")).hex() == "e0c8c1"
