"""One client's conversation in the remote framebuffer protocol, without sockets and threads.

    RFC 6143 (RFB 3.3, 3.7, 3.8) · QEMU extended key event (-258) · QEMU pointer motion change (-257) · ExtendedDesktopSize (-308)

`feed` takes bytes as they come; what has to be sent gathers in `out`.  Nothing that a client sends makes the session keep more
than one message's fixed part: lists are cut, texts are skipped.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable, Generator

from ringfence.backends.display import encodings
from ringfence.backends.display.api import LEFT, MIDDLE, RIGHT, Seat
from ringfence.backends.display.des import vnc_response
from ringfence.backends.display.keysyms import Keys
from ringfence.backends.display.pixels import (
    PALETTE_FORMAT,
    BadFormat,
    PixelFormat,
    Rect,
    Rgb,
    Tiles,
    all_tiles,
    fitted,
    rectangles,
    tiles_of,
)

DESKTOP_SIZE, POINTER_MOTION, EXTENDED_KEYS, EXTENDED_DESKTOP_SIZE = -223, -257, -258, -308
_SECURITY_NONE, _SECURITY_PASSWORD = 1, 2
_MOST_ENCODINGS = 256
_MOST_NEWS = 16
_RELATIVE_ZERO = 0x7FFF
_EDGE_PUSH = 256
_PROHIBITED = 1  # status of an ExtendedDesktopSize rectangle: the guest alone decides on its resolution

Parser = Generator[int, bytes, None]


class ProtocolError(Exception):
    """The client does not speak RFB, or may not come in."""


class Session:
    """`size()` is the screen's width and height as far as known.  `on_ready(shared)` is called when the client is let in,
    `on_denied` when its password was wrong."""

    def __init__(
        self,
        seat: Seat,
        name: str,
        password: str | None,
        size: Callable[[], tuple[int, int]],
        on_ready: Callable[[bool], None] = lambda shared: None,
        on_denied: Callable[[], None] = lambda: None,
    ) -> None:
        self.out = bytearray()
        self.ready = False
        self.typed = False  # set by keys and pointer; the server clears it
        self._seat = seat
        self._name = name
        self._password = password
        self._on_ready = on_ready
        self._on_denied = on_denied
        self._size = size
        self._width, self._height = 0, 0  # what the client was told
        self._format = PixelFormat()
        self._encoder = encodings.Encoder()
        self._abilities: frozenset[int] = frozenset()
        self._announce: list[bytes] = []  # pseudo-rectangles for the next update
        self._wanted: Rect | None = None
        self._dirty = all_tiles(0, 0, True)
        self._keys = Keys(seat)
        self._pointer: tuple[int, int] | None = None
        self._buttons = 0
        self._input = bytearray()
        self._parser = self._conversation()
        self._need = next(self._parser)

    # -- for the server

    def feed(self, data: bytes) -> None:
        """Raises ProtocolError; `out` may hold the reason, still to be sent."""
        self._input += data
        used = 0
        while len(self._input) - used >= self._need:
            part = bytes(self._input[used : used + self._need])
            used += self._need
            self._need = self._parser.send(part)
        del self._input[:used]

    @property
    def wants_picture(self) -> bool:
        """Whether the client waits for something new."""
        return self.ready and self._wanted is not None

    def changed(self, tiles: Tiles) -> None:
        """These tiles of the screen look different now."""
        if tiles.shape == self._dirty.shape:
            self._dirty |= tiles
        elif tiles.any():  # the client has another size in mind
            self._dirty[:] = True

    def update(self, picture: Rgb) -> None:
        """Sends what the client wants and does not have, if there is such."""
        if self._wanted is None:
            return
        height, width = picture.shape[:2]
        if (width, height) != (self._width, self._height):
            if self._resize(width, height):
                return
            picture = fitted(picture, self._width, self._height)
        index = tiles_of(self._wanted)
        mine = all_tiles(self._width, self._height, False)
        mine[index] = self._dirty[index]
        if not mine.any() and not self._announce:
            return
        widest = encodings.TIGHT_WIDEST if self._encoder.kind == encodings.TIGHT else 1 << 14
        parts = list(self._announce)
        for rect in rectangles(mine, self._width, self._height, widest):
            cut = picture[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
            parts += [struct.pack(">HHHHi", *rect, self._encoder.kind), self._encoder.encode(cut, self._format)]
        rects = len(self._announce) + (len(parts) - len(self._announce)) // 2
        self._announce.clear()
        self._dirty &= ~mine
        self._wanted = None
        self.out += struct.pack(">BxH", 0, rects)
        for part in parts:
            self.out += part

    def leave(self) -> None:
        """The client has gone: its keys and buttons are up again."""
        self._keys.release_all()
        if self._buttons:
            self._buttons = 0
            self._seat.buttons(0)

    # -- sending

    def _resize(self, width: int, height: int) -> bool:
        """Tells a client that can follow the new size; it asks for the new picture itself."""
        if EXTENDED_DESKTOP_SIZE in self._abilities:
            rect = _extended_size(0, 0, width, height)
        elif DESKTOP_SIZE in self._abilities:
            rect = struct.pack(">HHHHi", 0, 0, width, height, DESKTOP_SIZE)
        else:
            return False
        self._width, self._height = width, height
        self._dirty = all_tiles(width, height, True)
        self._wanted = None
        self.out += struct.pack(">BxH", 0, 1) + rect
        return True

    def _tell(self, pseudo_rectangle: bytes) -> None:
        """For the next update; who never asks for one cannot make this list grow."""
        if len(self._announce) < _MOST_NEWS:
            self._announce.append(pseudo_rectangle)

    def _refuse(self, reason: str) -> ProtocolError:
        text = reason.encode()
        self.out += struct.pack(">I", len(text)) + text
        return ProtocolError(reason)

    # -- receiving: each `yield n` is the next n bytes

    def _conversation(self) -> Parser:
        self.out += b"RFB 003.008\n"
        minor = _minor_version((yield 12))
        yield from self._security(minor)
        shared = (yield 1) != b"\0"
        name = self._name.encode()
        self._width, self._height = self._size()
        self._dirty = all_tiles(self._width, self._height, True)
        self.out += struct.pack(">HH", self._width, self._height) + self._format.pack() + struct.pack(">I", len(name)) + name
        self.ready = True
        self._on_ready(shared)
        while True:
            kind = (yield 1)[0]
            handler = _MESSAGES.get(kind)
            if handler is None:
                raise ProtocolError(f"message {kind} is not known")
            yield from handler(self)

    def _security(self, minor: int) -> Parser:
        kind = _SECURITY_NONE if self._password is None else _SECURITY_PASSWORD
        if minor < 7:
            self.out += struct.pack(">I", kind)
        else:
            self.out += bytes([1, kind])
            if (yield 1)[0] != kind:
                if minor >= 8:
                    self.out += struct.pack(">I", 1)
                    raise self._refuse("this kind of security was not offered")
                raise ProtocolError("this kind of security was not offered")
        if self._password is not None:
            challenge = os.urandom(16)
            self.out += challenge
            answer = yield 16
            if not hmac.compare_digest(answer, vnc_response(self._password, challenge)):
                self.out += struct.pack(">I", 1)
                self._on_denied()
                raise self._refuse("wrong password") if minor >= 8 else ProtocolError("wrong password")
        if self._password is not None or minor >= 8:
            self.out += struct.pack(">I", 0)

    def _set_pixel_format(self) -> Parser:
        data = yield 19
        try:
            self._format = PixelFormat.unpack(data[3:])
        except BadFormat as error:
            raise ProtocolError(str(error)) from error
        if self._format is PALETTE_FORMAT:
            self.out += struct.pack(">BxHH", 1, 0, 256)
            for color in PALETTE_FORMAT.palette():
                self.out += struct.pack(">HHH", *color)
        self._dirty[:] = True

    def _set_encodings(self) -> Parser:
        (count,) = struct.unpack(">xH", (yield 3))
        kept = min(count, _MOST_ENCODINGS)
        wanted = list(struct.unpack(f">{kept}i", (yield 4 * kept))) if kept else []
        yield from _skip(4 * (count - kept))
        self._encoder.choose(wanted)
        before, self._abilities = self._abilities, frozenset(wanted)
        news = self._abilities - before
        for ability in (EXTENDED_KEYS, POINTER_MOTION):  # x = 0 of the latter: moves are relative
            if ability in news:
                self._tell(struct.pack(">HHHHi", 0, 0, self._width, self._height, ability))
        if EXTENDED_DESKTOP_SIZE in news:
            self._tell(_extended_size(0, 0, self._width, self._height))

    def _update_request(self) -> Parser:
        incremental, *area = struct.unpack(">B4H", (yield 9))
        rect = Rect(*area).within(self._width, self._height)
        if not incremental:
            self._dirty[tiles_of(rect)] = True
        if self._wanted is not None:  # two requests are answered by one update
            right = max(rect.x + rect.width, self._wanted.x + self._wanted.width)
            bottom = max(rect.y + rect.height, self._wanted.y + self._wanted.height)
            x, y = min(rect.x, self._wanted.x), min(rect.y, self._wanted.y)
            rect = Rect(x, y, right - x, bottom - y)
        self._wanted = rect

    def _key_event(self) -> Parser:
        down, keysym = struct.unpack(">B2xI", (yield 7))
        self.typed = True
        self._keys.keysym(keysym, bool(down))

    def _pointer_event(self) -> Parser:
        mask, x, y = struct.unpack(">BHH", (yield 5))
        self.typed = True
        if POINTER_MOTION in self._abilities:
            dx, dy = x - _RELATIVE_ZERO, y - _RELATIVE_ZERO
        else:
            dx, dy = self._moved(min(x, self._width - 1), min(y, self._height - 1))
        pressed = mask & ~self._buttons
        wheel = (pressed >> 3 & 1) - (pressed >> 4 & 1)
        if dx or dy or wheel:
            self._seat.move(dx, dy, wheel)
        if (mask ^ self._buttons) & 7:
            self._seat.buttons((mask & 1 and LEFT) | (mask & 2 and MIDDLE) | (mask & 4 and RIGHT))
        self._buttons = mask

    def _moved(self, x: int, y: int) -> tuple[int, int]:
        """How far a mouse has to move.  Guests scale that as they like, so pointers drift apart: at an edge both meet again."""
        before, self._pointer = self._pointer, (x, y)
        if before is None or before == (x, y):
            return 0, 0
        push_x = (x == self._width - 1) - (x == 0) if x != before[0] else 0
        push_y = (y == self._height - 1) - (y == 0) if y != before[1] else 0
        return x - before[0] + push_x * _EDGE_PUSH, y - before[1] + push_y * _EDGE_PUSH

    def _cut_text(self) -> Parser:
        (length,) = struct.unpack(">3xI", (yield 7))
        # A negative length announces the extended clipboard, which is not offered; its size is the same number without sign.
        yield from _skip(length if length < 1 << 31 else (1 << 32) - length)

    def _set_desktop_size(self) -> Parser:
        screens = (yield 7)[5]
        yield from _skip(16 * screens)
        if EXTENDED_DESKTOP_SIZE in self._abilities:
            self._tell(_extended_size(1, _PROHIBITED, self._width, self._height))

    def _qemu(self) -> Parser:
        if (kind := (yield 1)[0]) != 0:
            raise ProtocolError(f"message 255/{kind} is not known")
        down, keysym, scancode = struct.unpack(">HII", (yield 10))
        self.typed = True
        if scancode:
            self._keys.scancode(scancode, bool(down))
        else:
            self._keys.keysym(keysym, bool(down))


_MESSAGES: dict[int, Callable[[Session], Parser]] = {
    0: Session._set_pixel_format,
    2: Session._set_encodings,
    3: Session._update_request,
    4: Session._key_event,
    5: Session._pointer_event,
    6: Session._cut_text,
    251: Session._set_desktop_size,
    255: Session._qemu,
}


def _minor_version(line: bytes) -> int:
    if not (line.startswith(b"RFB 003.") and line[8:11].isdigit() and line[11:] == b"\n"):
        raise ProtocolError("the client does not speak RFB 3")
    return int(line[8:11])


def _skip(size_bytes: int) -> Parser:
    while size_bytes > 0:
        part = min(size_bytes, 4096)
        yield part
        size_bytes -= part


def _extended_size(reason: int, status: int, width: int, height: int) -> bytes:
    screens = struct.pack(">B3xIHHHHI", 1, 0, 0, 0, width, height, 0)
    return struct.pack(">HHHHi", reason, status, width, height, EXTENDED_DESKTOP_SIZE) + screens
