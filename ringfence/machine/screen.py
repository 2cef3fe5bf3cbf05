"""A machine's screen, keyboard and mouse, for programs.

machine.wait_for_text("login:", timeout_s=60)
machine.type("root\\n")
machine.press("ctrl", "alt", "delete")
machine.screen().save("now.png")
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from ringfence.backends.api import Frame, Screen, TextScreen
from ringfence.backends.display.api import LEFT, MIDDLE, RIGHT
from ringfence.core.errors import RingfenceError
from ringfence.core.late import LateModule
from ringfence.core.units import MIB
from ringfence.devices import keymap
from ringfence.machine.executor import DeviceThread
from ringfence.machine.seat import MOST_KEYS, MachineSeat
from ringfence.memory.guest_memory import GuestMemory

if TYPE_CHECKING:
    from PIL import Image

    from ringfence.machine import fonts, glyphs
    from ringfence.machine.fonts import Font
else:  # wanted by those who look at the screen; they bring numpy with them
    Image = LateModule("PIL.Image")
    fonts = LateModule("ringfence.machine.fonts")
    glyphs = LateModule("ringfence.machine.glyphs")

KEY_PAUSE_S = 0.02
"""Between two keys typed by a program: BIOS keeps fifteen for software that is busy."""
_BUTTONS = {"left": LEFT, "right": RIGHT, "middle": MIDDLE}
_ALIASES = dict(
    pair.split("=")
    for pair in (
        "ctrl=leftctrl control=leftctrl alt=leftalt shift=leftshift altgr=rightalt meta=leftmeta super=leftmeta win=leftmeta menu=compose"
        " return=enter escape=esc del=delete ins=insert pgup=pageup pgdn=pagedown print=sysrq printscreen=sysrq break=pause"
    ).split()
)
_ROM_AREA = (0xC0000, 0x100000)  # of option ROMs and firmware
_SEARCHED_BYTES = 1024 * MIB
_FONT_SEARCH_S, _FONT_SEARCH_SHARE = 2.0, 0.05  # the least time between searches, and their share of the time
_ANSWER_S = 30.0
_POLL_S, _POLL_SHARE = 0.05, 0.2  # looks take at most this share of the time

T = TypeVar("T")


class ScreenTimeout(RingfenceError):
    """What was waited for did not appear in time, or cannot any more; `seen` is the text that was on the screen instead."""

    def __init__(self, what: str, seen: str | None) -> None:
        super().__init__(f"{what}; the screen showed " + (f"this:\n{seen}" if seen else "no text"))
        self.seen = seen


class ScreenAccess:
    """What a Machine offers of its screen; a part of the class Machine.  Methods may be called from any thread.

    Text in graphics modes is read with the fonts found in the guest; `add_font` adds others.
    """

    memory: GuestMemory
    _loop: DeviceThread
    _seat: MachineSeat
    _thread: threading.Thread | None
    _ended: threading.Event
    _closed: bool

    def _init_screen(self, screen: Screen | None) -> None:
        self._screen = screen
        self._own_fonts: tuple[Font, ...] = ()
        self._reading = threading.Lock()
        self._next_font_search = 0.0

    # -- looking

    def frame(self) -> Frame:
        """What the screen shows, as bytes.  Before the start and after the end too, until the machine is closed."""
        screen = self._need_screen()
        return self._ask(screen.frame)

    def screen(self) -> Image.Image:
        """What the screen shows, as an image of the mode RGB."""
        frame = self.frame()
        return Image.frombytes("RGB", (frame.width, frame.height), frame.rgb)

    def screen_text(self) -> str | None:
        """The text on the screen, lines without blanks at their ends.  In graphics modes it is recognised by the glyphs of console
        fonts; None when there is none."""
        screen = self._need_screen()
        seen: TextScreen | Frame = self._ask(lambda: screen.text() or screen.frame())
        if isinstance(seen, TextScreen):
            return "\n".join(line.rstrip() for line in seen.lines)
        with self._reading:
            return self._read(seen)

    def wait_for_text(self, wanted: str | re.Pattern[str], timeout_s: float) -> str:
        """Waits until the text is on the screen, and returns all that is; raises ScreenTimeout.

        A text of several lines has "\\n" between them; a pattern is searched for as `re` does.
        """
        deadline = time.monotonic() + timeout_s
        shown = wanted if isinstance(wanted, str) else wanted.pattern
        while True:
            begun = time.monotonic()
            ended = self._ended.is_set()  # before looking: what comes last counts
            text = self.screen_text()
            if text is not None and (wanted in text if isinstance(wanted, str) else wanted.search(text)):
                return text
            if ended:
                raise ScreenTimeout(f"the machine ended before {shown!r} appeared", text)
            now = time.monotonic()
            if now >= deadline:
                raise ScreenTimeout(f"{shown!r} did not appear within {timeout_s:g} s", text)
            self._ended.wait(min(max(_POLL_S, (now - begun) / _POLL_SHARE), deadline - now))

    def add_font(self, font: Font) -> None:
        """One more font to read graphics modes with, for instance `Font.from_psf(data)`."""
        with self._reading:
            self._own_fonts += (font,)
            self._reader.use(fonts.Font.merged([*self._own_fonts, *self._reader.fonts]))

    # -- typing and pointing

    def type(self, text: str, pause_s: float = KEY_PAUSE_S) -> None:
        """Types on a US keyboard, with "\\n" for Enter, and returns when the guest's keyboard has got it all.

        Raises RingfenceError for characters that such a keyboard has not, before anything is typed.
        """
        strokes: list[tuple[int, ...]] = []
        for character in text:
            found = keymap.for_character(character)
            if found is None:
                raise RingfenceError(f"no key of a US keyboard types {character!r}; use press() for named keys")
            code, shift = found
            strokes.append((keymap.KEY_LEFTSHIFT, code) if shift else (code,))
        self._strike(strokes, pause_s)

    def press(self, *names: str, pause_s: float = KEY_PAUSE_S) -> None:
        """Presses keys together, as `press("ctrl", "alt", "delete")`, and lets them go; returns as `type` does.

        Names are those of Linux's KEY_* in lower case, some usual others, and the characters on the keys.
        """
        self._strike([tuple(_named_key(name) for name in names)], pause_s)

    def mouse(self, dx: int = 0, dy: int = 0, wheel: int = 0, buttons: Iterable[str] | None = None) -> None:
        """Moves the mouse to the right and down, turns its wheel away from the user, then sets which buttons ("left", "right",
        "middle") are down from now on; None leaves them.  The guest decides how far its pointer goes."""
        self._need_running()
        mask = None if buttons is None else sum({_button(name) for name in buttons})
        if dx or dy or wheel:
            self._seat.move(dx, dy, wheel)
        if mask is not None:
            self._seat.buttons(mask)

    # -- inside

    @cached_property
    def _reader(self) -> glyphs.GlyphReader:
        return glyphs.GlyphReader([])

    def _need_screen(self) -> Screen:
        if self._closed:
            raise RingfenceError("the machine is closed, its screen has gone")
        if self._screen is None:
            raise RingfenceError("this machine has no screen: its board has no video card")
        return self._screen

    def _need_running(self) -> None:
        if self._thread is None or self._ended.is_set():
            raise RingfenceError("the machine does not run, nobody takes what is typed")

    def _strike(self, strokes: list[tuple[int, ...]], pause_s: float) -> None:
        self._need_running()
        if not self._seat.has_keyboard:
            raise RingfenceError("this machine has no keyboard")
        pause_ns = int(pause_s * 1e9)
        for codes in strokes:
            self._until_waiting(MOST_KEYS // 8)
            for code in codes:
                self._seat.key(code, True)
            for left, code in reversed(list(enumerate(codes))):
                self._seat.key(code, False, 0 if left else pause_ns)
        self._until_waiting(0)

    def _until_waiting(self, most: int) -> None:
        while self._seat.keys_waiting > most and not self._ended.is_set():
            time.sleep(0.005)

    def _ask(self, question: Callable[[], T]) -> T:
        """The answer of the device thread; where that does not run (any more), nobody else touches the devices."""
        if self._thread is None or self._ended.is_set() or threading.current_thread() is self._thread:
            with self._reading:
                return question()
        answers: list[T | Exception] = []
        answered = threading.Event()

        def answer() -> None:
            try:
                answers.append(question())
            except Exception as error:  # belongs to whoever asked
                answers.append(error)
            answered.set()

        self._loop.post(answer)
        deadline = time.monotonic() + _ANSWER_S
        while not answered.wait(0.05):
            if self._ended.is_set() and not answered.is_set():
                with self._reading:
                    return question()
            if time.monotonic() > deadline:
                raise RingfenceError("the machine does not answer")
        result = answers[0]
        if isinstance(result, Exception):
            raise result
        return result

    def _read(self, frame: Frame) -> str | None:
        """Where something cannot be read, the fonts are looked for again, but not all the time: a kernel may have brought its own."""
        text = self._reader.read(frame)
        begun = time.monotonic()
        if (text is None or fonts.UNKNOWN in text) and begun >= self._next_font_search:
            self._reader.use(fonts.Font.merged([*self._own_fonts, *self._fonts_in_guest()]))
            now = time.monotonic()
            self._next_font_search = now + max(_FONT_SEARCH_S, (now - begun) / _FONT_SEARCH_SHARE)
            text = self._reader.read(frame)
        return text

    def _fonts_in_guest(self) -> Iterator[Font]:
        """Those in ROMs first, then kernels' in RAM."""
        for piece in self.memory.pieces:
            base, end = max(piece.base, _ROM_AREA[0]), min(piece.end, _ROM_AREA[1])
            if base < end:
                offset = piece.offset + base - piece.base
                yield from fonts.find_fonts(bytes(piece.region.view[offset : offset + end - base]))
        for region in self.memory.regions:
            for start, end in region.touched():
                if start < _SEARCHED_BYTES:
                    yield from fonts.find_fonts(region.view[start : min(end, _SEARCHED_BYTES)], aligned=True)


def _named_key(name: str) -> int:
    lower = name.lower()
    code = keymap.CODES.get(_ALIASES.get(lower, lower))
    if code is None and (found := keymap.for_character(name)) is not None:
        code = found[0]
    if code is None:
        raise RingfenceError(f"there is no key {name!r}; names are those of Linux's KEY_*, such as f1, pageup, leftctrl")
    return code


def _button(name: str) -> int:
    if name not in _BUTTONS:
        raise RingfenceError(f"there is no button {name!r}; a mouse has {', '.join(_BUTTONS)}")
    return _BUTTONS[name]
