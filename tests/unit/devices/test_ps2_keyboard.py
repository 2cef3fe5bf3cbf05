"""The keyboard by itself: scan codes of all sets, fake shifts, commands, its buffer."""

from __future__ import annotations

import pytest

from ringfence.core.errors import SnapshotError
from ringfence.devices import keymap
from ringfence.devices.keymap import CODES
from ringfence.devices.ps2_keyboard import BUFFER_BYTES, Ps2Keyboard


def take(keyboard: Ps2Keyboard) -> str:
    found = bytearray()
    while (value := keyboard.take()) is not None:
        found.append(value)
    return found.hex()


def ask(keyboard: Ps2Keyboard, *values: int) -> str:
    for value in values:
        keyboard.receive(value)
    return take(keyboard)


def down(keyboard: Ps2Keyboard, name: str) -> str:
    keyboard.key(CODES[name], True)
    return take(keyboard)


def up(keyboard: Ps2Keyboard, name: str) -> str:
    keyboard.key(CODES[name], False)
    return take(keyboard)


@pytest.fixture
def keyboard() -> Ps2Keyboard:
    return Ps2Keyboard()


@pytest.mark.parametrize(
    ("number", "name", "make", "release"),
    [
        (1, "a", "1e", "9e"),
        (2, "a", "1c", "f01c"),
        (3, "kpplus", "7c", ""),
        (3, "leftctrl", "11", "f011"),
        (1, "rightctrl", "e01d", "e09d"),
        (2, "rightctrl", "e014", "e0f014"),
        (3, "rightctrl", "58", ""),
        (1, "f7", "41", "c1"),
        (2, "f7", "83", "f083"),
        (1, "delete", "e053", "e0d3"),
        (2, "delete", "e071", "e0f071"),
        (3, "delete", "64", ""),
        (1, "sysrq", "e02ae037", "e0b7e0aa"),
        (2, "sysrq", "e012e07c", "e0f07ce0f012"),
        (3, "sysrq", "57", ""),
        (1, "pause", "e11d45e19dc5", ""),
        (2, "pause", "e11477e1f014f077", ""),
        (3, "pause", "62", ""),
        (2, "f24", "5f", "f05f"),
    ],
)
def test_make_and_break(keyboard: Ps2Keyboard, number: int, name: str, make: str, release: str) -> None:
    assert ask(keyboard, 0xF0, number) == "fafa"
    assert (down(keyboard, name), up(keyboard, name)) == (make, release)


def test_holding_repeats_the_make_code(keyboard: Ps2Keyboard) -> None:
    assert [down(keyboard, "sysrq") for _ in range(3)] == ["e012e07c", "e07c", "e07c"]
    up(keyboard, "sysrq")
    assert [down(keyboard, "pause") for _ in range(2)] == ["e11477e1f014f077", ""]


@pytest.mark.parametrize(("shift", "lift", "press"), [("leftshift", "e0f012", "e012"), ("rightshift", "e0f059", "e059")])
def test_grey_keys_lift_shift(keyboard: Ps2Keyboard, shift: str, lift: str, press: str) -> None:
    down(keyboard, shift)
    assert down(keyboard, "up") == lift + "e075"
    assert down(keyboard, "up") == "e075"
    assert up(keyboard, "up") == "e0f075" + press
    assert down(keyboard, "kpslash") == lift + "e04a"
    assert down(keyboard, "a") == press + "1c"  # another key ends it
    assert up(keyboard, "kpslash") == "e0f04a"


def test_grey_keys_press_shift_with_num_lock(keyboard: Ps2Keyboard) -> None:
    ask(keyboard, 0xED, 0x02)
    assert down(keyboard, "home") == "e012e06c"
    assert up(keyboard, "home") == "e0f06ce0f012"
    assert down(keyboard, "kpslash") == "e04a"
    down(keyboard, "leftshift")
    assert down(keyboard, "home") == "e0f012e06c"
    assert up(keyboard, "leftshift") == "e012f012"
    assert up(keyboard, "home") == "e0f06c"


def test_set_3_knows_types_of_keys(keyboard: Ps2Keyboard) -> None:
    ask(keyboard, 0xF0, 3)
    assert [down(keyboard, "a"), down(keyboard, "a"), up(keyboard, "a")] == ["1c", "1c", ""]
    assert [down(keyboard, "leftshift"), down(keyboard, "leftshift"), up(keyboard, "leftshift")] == ["12", "", "f012"]
    assert ask(keyboard, 0xFC, 0x1C, 0x1B, 0xF4) == "fafafafa"
    assert [down(keyboard, "a"), down(keyboard, "a"), up(keyboard, "a")] == ["1c", "", "f01c"]
    assert ask(keyboard, 0xFA) == "fa"
    assert [down(keyboard, "f1"), down(keyboard, "f1"), up(keyboard, "f1")] == ["07", "07", "f007"]
    assert down(keyboard, "mute") == ""  # no such key in set 3
    assert ask(keyboard, 0xF6, 0xF0, 3) == "fafafa"
    assert [down(keyboard, "s"), up(keyboard, "s")] == ["1b", ""]


def test_commands(keyboard: Ps2Keyboard) -> None:
    assert ask(keyboard, 0xEE) == "ee"
    assert ask(keyboard, 0xF2) == "faab83"
    assert ask(keyboard, 0xFE) == "83"
    assert ask(keyboard, 0xED) == "fa"
    assert ask(keyboard, 0x07) == "fa" and keyboard.leds == 7
    assert ask(keyboard, 0xF3, 0x00) == "fafa" and keyboard.state.typematic == 0
    assert ask(keyboard, 0xF0, 0) == "fafa02"
    assert ask(keyboard, 0xF0, 4) == "fafe"
    assert ask(keyboard, 0xED, 0xF4) == "fafa" and keyboard.leds == 7  # a command in place of the argument
    assert ask(keyboard, 0x00) == "fe" and ask(keyboard, 0xEF) == "fe"
    assert ask(keyboard, 0xFF) == "faaa"
    assert keyboard.leds == 0 and keyboard.state.typematic == 0x2B and ask(keyboard, 0xF0, 0) == "fafa02"


def test_disabled_means_silent(keyboard: Ps2Keyboard) -> None:
    keyboard.key(CODES["a"], True)
    assert ask(keyboard, 0xF5) == "fa"  # and the buffer is empty
    assert down(keyboard, "leftshift") == ""
    assert ask(keyboard, 0xF4) == "fa"
    assert down(keyboard, "up") == "e0f012e075"  # it still knows what is held


def test_replies_do_not_split_a_scan_code(keyboard: Ps2Keyboard) -> None:
    keyboard.key(CODES["right"], True)
    keyboard.key(CODES["b"], True)
    assert keyboard.take() == 0xE0
    keyboard.receive(0xED)
    assert not keyboard.answers
    assert take(keyboard) == "74fa32"
    keyboard.key(CODES["right"], False)
    assert keyboard.take() == 0xE0
    assert ask(keyboard, 0xF5) == "f074fa"  # clearing leaves what has begun


@pytest.mark.parametrize(("number", "code"), [(1, "ff"), (2, "00")])
def test_overrun(keyboard: Ps2Keyboard, number: int, code: str) -> None:
    ask(keyboard, 0xF0, number)
    for _ in range(BUFFER_BYTES + 10):
        keyboard.key(CODES["a"], True)
    keyboard.key(CODES["up"], True)
    assert take(keyboard) == ("1e" if number == 1 else "1c") * BUFFER_BYTES + code
    assert down(keyboard, "b") == ("30" if number == 1 else "32")


def test_half_a_sequence_is_never_kept(keyboard: Ps2Keyboard) -> None:
    for _ in range(BUFFER_BYTES - 1):
        keyboard.key(CODES["a"], True)
    keyboard.key(CODES["up"], True)
    assert take(keyboard) == "1c" * (BUFFER_BYTES - 1) + "00"


def test_unknown_keys_are_ignored(keyboard: Ps2Keyboard) -> None:
    for code in (0, 84, 255, 256, 10**9, -1):
        keyboard.key(code, True)
        keyboard.key(code, False)
    assert take(keyboard) == ""


def test_a_snapshot_whose_queues_do_not_fit(keyboard: Ps2Keyboard) -> None:
    keyboard.key(CODES["up"], True)
    keyboard.take()
    saved = keyboard.save()
    for wrong in ({"buffer_bytes": 100}, {"replies_bytes": 31}, {"lengths_count": 1}, {"begun": 0}, {"lengths_count": 65}):
        with pytest.raises(SnapshotError):
            keyboard.load({**saved, **wrong})
    fresh = Ps2Keyboard()
    fresh.load(saved)
    assert take(fresh) == "75"


def test_every_key_of_the_table_makes_and_breaks(keyboard: Ps2Keyboard) -> None:
    for number in (1, 2):
        ask(keyboard, 0xF0, number)
        seen = set()
        for code in keymap.KEYS:
            make = down(keyboard, keymap.KEYS[code].name)
            release = up(keyboard, keymap.KEYS[code].name)
            assert make and (release or code == keymap.KEY_PAUSE)
            seen.add(make)
        assert len(seen) == len(keymap.KEYS)
