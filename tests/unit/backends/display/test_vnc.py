"""The VNC server, used by a client of our own over the loopback interface."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ringfence.backends.display import vnc
from ringfence.backends.display.options import VncOptions
from ringfence.backends.display.pixels import all_tiles
from ringfence.backends.display.rfb import ProtocolError, Session
from ringfence.backends.display.vnc import VncServer
from ringfence.core.errors import UserError
from tests.unit.backends.display.fakes import FakeSeat, eventually, noise
from tests.unit.backends.display.rfb_client import (
    DESKTOP_SIZE,
    EXTENDED_DESKTOP_SIZE,
    EXTENDED_KEYS,
    HEXTILE,
    POINTER_MOTION,
    RAW,
    TIGHT,
    ZLIB,
    Refused,
    RfbClient,
)

Serve = Callable[..., tuple[FakeSeat, tuple[str, int]]]
BGR233 = (8, 8, False, (7, 7, 3), (0, 3, 6))
RGB565 = (16, 16, False, (31, 63, 31), (11, 5, 0))
RGB565_BIG = (16, 16, True, (31, 63, 31), (11, 5, 0))
RGB888 = (32, 24, False, (255, 255, 255), (16, 8, 0))
BGR888_BIG = (32, 24, True, (255, 255, 255), (0, 8, 16))
RGB101010 = (32, 30, True, (1023, 1023, 1023), (20, 10, 0))
FORMATS = [BGR233, RGB565, RGB565_BIG, RGB888, BGR888_BIG, RGB101010]


@pytest.fixture
def serve() -> Iterator[Serve]:
    open_ones: list[Any] = []

    def make(picture: Any = None, password: str | None = None) -> tuple[FakeSeat, tuple[str, int]]:
        seat = FakeSeat(noise(200, 150) if picture is None else picture)
        server = VncServer(VncOptions(port=0, password=password), "a machine")
        open_ones.extend((server, seat))
        server.start(seat)
        return seat, server.address

    yield make
    for one in open_ones:
        one.close()


def settle(client: RfbClient, seat: FakeSeat) -> None:
    """Asks until the client's picture is the seat's."""
    for _ in range(20):
        if client.pixels.shape == seat.picture.shape[:2] and (client.pixels == client.expected(seat.picture)).all():
            return
        client.ask()
        client.update()
    pytest.fail("the picture never became right")


@pytest.mark.parametrize("version", ["003.003", "003.007", "003.008", "003.889"])
@pytest.mark.parametrize("password", [None, "sesame"])
def test_handshake_of_every_version(serve: Serve, version: str, password: str | None) -> None:
    seat, address = serve(password=password)
    if version == "003.889":
        version = "003.008"
    with RfbClient(address, version, password) as client:
        assert client.name == "a machine"
        assert client.server_format == struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)


@pytest.mark.parametrize("version", ["003.003", "003.008"])
def test_wrong_password(serve: Serve, version: str) -> None:
    _, address = serve(password="sesame")
    with pytest.raises(Refused, match="wrong password" if version == "003.008" else None):
        RfbClient(address, version, "guess")
    RfbClient(address, version, "sesame").close()
    RfbClient(address, version, "sesame").close()


def test_passwords_cannot_be_tried_for_long(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vnc, "_FAILURES", 3)
    _, address = serve(password="sesame")
    for _ in range(3):
        with pytest.raises(Refused):
            RfbClient(address, password="guess")
    with pytest.raises((EOFError, ConnectionError)):
        RfbClient(address, password="sesame")


def test_security_that_was_not_offered(serve: Serve) -> None:
    _, address = serve(password="sesame")
    with socket.create_connection(address, timeout=10) as raw:
        raw.recv(12)
        raw.sendall(b"RFB 003.008\n")
        assert raw.recv(2) == b"\1\2"
        raw.sendall(b"\1")  # none
        data = b""
        while part := raw.recv(100):
            data += part
        assert data.startswith(b"\0\0\0\1") and b"not offered" in data


@pytest.mark.parametrize("kind", [RAW, HEXTILE, ZLIB, TIGHT])
@pytest.mark.parametrize("form", FORMATS, ids=["bgr233", "rgb565", "rgb565-big", "rgb888", "bgr888-big", "rgb101010"])
def test_encodings_and_pixel_formats(serve: Serve, kind: int, form: Any) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(kind, DESKTOP_SIZE)
        client.set_format(*form)
        settle(client, seat)
        for seed in (2, 3):  # compressors go on from what they sent before
            seat.picture = noise(200, 150, seed)
            settle(client, seat)
        assert {k for k in client.kinds if k >= 0} == {kind}


def test_tight_uses_each_of_its_ways(serve: Serve) -> None:
    """One colour, two, a palette, all; and rectangles too small to be compressed."""
    picture = np.zeros((64, 256, 3), np.uint8)
    seat, address = serve(picture)
    with RfbClient(address) as client:
        client.set_encodings(TIGHT, DESKTOP_SIZE)
        settle(client, seat)
        random = np.random.default_rng(5)
        for colors in (2, 3, 200, 256, 257, 1 << 24):
            picture = picture.copy()
            values = random.integers(0, colors, (16, 64)).astype(np.uint32)
            values.flat[: min(colors, 1024)] = np.arange(min(colors, 1024))
            picture[16:32, 64:128] = np.stack([values & 255, values >> 8 & 255, values >> 16], axis=-1)
            seat.picture = picture
            settle(client, seat)
        seat.picture = noise(3, 2)
        settle(client, seat)


def test_a_palette_for_clients_without_true_colour(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        client.set_format(8, 8, False, (0, 0, 0), (0, 0, 0), true=False)
        client.ask(False)
        client.update()
        assert client.palette is not None and len(client.palette) == 256
        assert client.palette[0] == (0, 0, 0) and client.palette[255] == (65535, 65535, 65535)
        client.maxima, client.shifts = (7, 7, 3), (0, 3, 6)
        settle(client, seat)


def test_only_what_changed_is_sent(serve: Serve) -> None:
    seat, address = serve(noise(640, 480))
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)
        client.ask()
        time.sleep(0.2)
        picture = seat.picture.copy()
        picture[100, 300] ^= 255
        seat.picture = picture
        assert client.update() == [(256, 96, 64, 16, RAW)]
        assert (client.pixels == client.expected(picture)).all()


def test_a_request_for_a_part_is_answered_with_that_part(serve: Serve) -> None:
    seat, address = serve(noise(640, 480))
    with RfbClient(address) as client:
        client.set_encodings(ZLIB, DESKTOP_SIZE)
        settle(client, seat)
        client.ask(False, (70, 20, 10, 10))
        assert client.update() == [(64, 16, 64, 16, ZLIB)]
        client.ask(False, (600, 470, 5000, 5000))
        assert client.update() == [(576, 464, 64, 16, ZLIB)]


@pytest.mark.parametrize("ability", [DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE])
def test_the_client_follows_the_guests_resolution(serve: Serve, ability: int) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(TIGHT, ability)
        settle(client, seat)
        for width, height in ((720, 400), (1024, 768), (33, 17)):
            seat.picture = noise(width, height)
            settle(client, seat)
        assert client.news[-1] == (0, 0, 33, 17, ability)


def test_a_client_of_fixed_size_sees_what_fits(serve: Serve) -> None:
    seat, address = serve(noise(640, 480))
    with RfbClient(address) as first:
        first.set_encodings(RAW, DESKTOP_SIZE)
        settle(first, seat)
    with RfbClient(address) as client:
        assert (client.width, client.height) == (640, 480)
        settle(client, seat)
        client.ask()
        seat.picture = noise(800, 100, 7)
        client.update()
        assert (client.pixels[:100] == client.expected(seat.picture)[:, :640]).all()
        assert not client.pixels[100:].any()


def test_no_picture_for_a_moment(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(TIGHT, DESKTOP_SIZE)
        settle(client, seat)
        client.ask()
        for width, height in ((0, 0), (0, 100), (100, 0)):
            seat.picture = np.zeros((height, width, 3), np.uint8)
            looks = seat.looks
            eventually(lambda looks=looks: seat.looks > looks + 1)
        seat.picture = noise(320, 200)
        client.update()
        settle(client, seat)


def test_the_client_cannot_change_the_resolution(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(RAW, EXTENDED_DESKTOP_SIZE)
        settle(client, seat)
        client.send(struct.pack(">BxHHBx", 251, 999, 999, 1) + bytes(16))
        client.ask()
        client.update()
        assert client.news[-1] == (1, 1, 200, 150, EXTENDED_DESKTOP_SIZE)


# -- keys and pointer


def test_keys_by_name_and_by_scancode(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(RAW, EXTENDED_KEYS)
        client.ask(False)
        client.update()
        assert client.news[0][4] == EXTENDED_KEYS
        client.key(0xFF0D, True)
        client.key(0xFF0D, False)
        client.extended_key(ord("y"), 0x2C, True)  # a German keyboard's y is the key of the US z
        client.extended_key(ord("y"), 0x2C, False)
        client.extended_key(0xFF53, 0xCD, True)
        client.extended_key(0xFF53, 0xCD, False)
        eventually(lambda: len(seat.keys) == 6)
    assert seat.keys == [(28, True), (28, False), (44, True), (44, False), (106, True), (106, False)]


def test_shift_is_made_to_fit_the_us_layout(serve: Serve) -> None:
    """Where the user's layout needs Shift for "/" and none for "!", the guest's does the other way round."""
    seat, address = serve()
    with RfbClient(address) as client:
        client.key(0xFFE1, True)
        client.key(ord("/"), True)
        client.key(ord("/"), False)
        client.key(0xFFE1, False)
        client.key(ord("!"), True)
        client.key(ord("!"), False)
        client.key(ord("A"), True)  # with Caps Lock
        client.key(ord("A"), False)
        eventually(lambda: len(seat.keys) == 12)
    shift, slash, one, a = 42, 53, 2, 30
    assert seat.keys == [
        *[(shift, True), (shift, False), (slash, True), (shift, True), (slash, False), (shift, False)],
        *[(shift, True), (one, True), (shift, False), (one, False), (a, True), (a, False)],
    ]


def test_a_client_that_leaves_lets_keys_and_buttons_go(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.key(0xFFE3, True)
        client.key(ord("c"), True)
        client.pointer(1, 5, 5)
        eventually(lambda: seat.masks)
    eventually(lambda: len(seat.keys) == 4 and len(seat.masks) == 2)
    assert sorted(seat.keys[2:]) == [(29, False), (46, False)] and seat.masks == [1, 0]


def test_pointer(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)
        client.pointer(0, 50, 50)
        client.pointer(0, 60, 45)
        client.pointer(4, 60, 45)  # right
        client.pointer(2, 60, 45)  # middle
        client.pointer(8, 60, 45)  # wheel away from the user
        client.pointer(0, 60, 45)
        client.pointer(16, 60, 45)
        client.pointer(0, 0, 45)
        eventually(lambda: len(seat.moves) == 4)
    assert seat.moves[:3] == [(10, -5, 0), (0, 0, 1), (0, 0, -1)]
    assert seat.moves[3][0] < -60, "at an edge both pointers meet again"
    assert seat.masks == [2, 4, 0]


def test_relative_pointer(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(RAW, POINTER_MOTION)
        client.ask(False)
        client.update()
        assert client.news[0][0] == 0 and client.news[0][4] == POINTER_MOTION
        client.pointer(0, 0x7FFF - 7, 0x7FFF + 9)
        eventually(lambda: seat.moves)
    assert seat.moves == [(-7, 9, 0)]


# -- many clients, and none


def test_clients_share_unless_one_wants_to_be_alone(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as one, RfbClient(address) as two:
        for client in (one, two):
            client.set_encodings(ZLIB, DESKTOP_SIZE)
            settle(client, seat)
        seat.picture = noise(200, 150, 9)
        settle(one, seat)
        settle(two, seat)
        with RfbClient(address, shared=False) as three:
            three.set_encodings(TIGHT, DESKTOP_SIZE)
            settle(three, seat)
            for client in (one, two):
                with pytest.raises((EOFError, ConnectionError)):
                    client.ask()
                    client.update()
                    client.receive(1)


def test_nobody_looks_while_nobody_is_connected_or_asks(serve: Serve) -> None:
    seat, address = serve()
    time.sleep(0.1)
    assert seat.looks == 0
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)
        time.sleep(0.1)
        before = seat.looks
        time.sleep(0.2)
        assert seat.looks == before
    time.sleep(0.1)
    before = seat.looks
    time.sleep(0.2)
    assert seat.looks == before


def test_a_still_screen_is_looked_at_less_and_less(serve: Serve) -> None:
    seat, address = serve()
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)
        client.ask()
        time.sleep(1.0)
        before = seat.looks
        time.sleep(0.9)
        assert 2 <= seat.looks - before <= 8


def test_a_blinking_cursor_alone_is_no_hurry(serve: Serve) -> None:
    seat, address = serve()
    still, blinked = seat.picture, seat.picture.copy()
    blinked[30:32, 40:48] ^= 255
    with RfbClient(address) as client:
        client.set_encodings(TIGHT, DESKTOP_SIZE)
        settle(client, seat)

        def use_it_for(seconds: float) -> int:
            before, end = seat.looks, time.monotonic() + seconds
            while time.monotonic() < end:
                seat.picture = blinked if seat.picture is still else still
                client.ask()
                client.update()
            return seat.looks - before

        use_it_for(1.0)
        assert use_it_for(1.0) <= 7
        client.key(ord("a"), True)
        assert use_it_for(0.5) >= 5, "but what is typed shows soon"


def test_at_most_thirty_pictures_a_second(serve: Serve) -> None:
    seat, address = serve(noise(64, 16))
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)
        begun, before = time.monotonic(), seat.looks
        for seed in range(12):
            seat.picture = noise(64, 16, 50 + seed)
            client.ask()
            client.update()
        assert (seat.looks - before) / (time.monotonic() - begun) < 40


# -- hostile clients


def attack(address: tuple[str, int], *parts: bytes) -> None:
    """Sends and takes nothing, until the server closes or everything is sent."""
    with socket.create_connection(address, timeout=5) as raw:
        try:
            for part in parts:
                raw.sendall(part)
            raw.settimeout(0.3)
            while raw.recv(65536):
                pass
        except OSError:
            return


HELLO = b"RFB 003.008\n\1\1"


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET / HTTP/1.1\r\n\r\n"],
        [b"RFB 004.000\n"],
        [b"RFB 003.xxx\n"],
        [b"RFB 003.008\n\7"],
        [HELLO, b"\x09" * 100],
        [HELLO, struct.pack(">B3xBBBBHHHBBB3x", 0, 24, 24, 0, 1, 255, 255, 255, 0, 8, 16)],
        [HELLO, struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 65535, 65535, 65535, 255, 255, 255)],
        [HELLO, struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 0, 0, 0, 0, 0, 0, 0)],
        [HELLO, struct.pack(">BxH", 2, 65535), bytes(65535 * 4)],
        [HELLO, struct.pack(">B3xI", 6, 0xFFFF_FFFF), bytes(10)],
        [HELLO, struct.pack(">B3xI", 6, 0x8000_0000), bytes(100000)],
        [HELLO, struct.pack(">BBHHHH", 3, 0, 65535, 65535, 65535, 65535) * 1000],
        [HELLO, struct.pack(">BBHHHH", 3, 0, 0, 0, 0, 0) * 1000],
        [HELLO, struct.pack(">BBHHHH", 3, 0, 0, 0, 65535, 65535) * 50000],
        [HELLO, struct.pack(">BBxxI", 4, 1, 0xFFFF_FFFF) * 1000],
        [HELLO, struct.pack(">BBHH", 5, 255, 65535, 65535) * 1000],
        [HELLO, b"\xff\x01\0\0"],
        [HELLO, struct.pack(">BBHII", 255, 0, 1, 0, 0xFFFF_FFFF) * 100],
        [HELLO, (struct.pack(">BxHi", 2, 1, EXTENDED_KEYS) + struct.pack(">BxH", 2, 0)) * 10000],
        [HELLO, struct.pack(">B3xBBBBHHHBBB3x", 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0) * 3000],
    ],
)
def test_hostile_clients_hurt_nobody(serve: Serve, parts: list[bytes]) -> None:
    seat, address = serve()
    attack(address, *parts)
    with RfbClient(address) as client:
        client.set_encodings(TIGHT, DESKTOP_SIZE)
        settle(client, seat)


def test_random_bytes(serve: Serve) -> None:
    seat, address = serve()
    random = np.random.default_rng(11)
    for _ in range(30):
        attack(address, HELLO, random.integers(0, 256, 400, dtype=np.uint8).tobytes()[: random.integers(1, 400)])
    with RfbClient(address) as client:
        client.set_encodings(RAW, DESKTOP_SIZE)
        settle(client, seat)


MESSAGE_BYTES = {0: 20, 3: 10, 4: 8, 5: 6, 255: 12}


def random_message(random: np.random.Generator) -> bytes:
    """A well-formed message with random contents, or with likely ones."""
    kind = int(random.choice([0, 2, 2, 3, 3, 3, 4, 5, 6, 251, 255]))
    if kind == 2:
        known = [RAW, HEXTILE, ZLIB, TIGHT, DESKTOP_SIZE, EXTENDED_DESKTOP_SIZE, EXTENDED_KEYS, POINTER_MOTION, -1, 99]
        chosen = random.choice(known, int(random.integers(0, 400)))
        return struct.pack(f">BxH{len(chosen)}i", 2, len(chosen), *chosen.tolist())
    if kind == 0 and random.random() < 0.8:
        bits, depth, big, maxima, shifts = FORMATS[random.integers(len(FORMATS))]
        return struct.pack(">B3xBBBBHHHBBB3x", 0, bits, depth, big, random.random() < 0.8, *maxima, *shifts)
    if kind == 3:
        return struct.pack(">BBHHHH", 3, random.random() < 0.5, *random.choice([0, 1, 63, 64, 199, 200, 65535], 4).tolist())
    if kind == 6:
        length = int(random.integers(0, 9000))
        return struct.pack(">B3xI", 6, length) + bytes(length)
    if kind == 251:
        screens = int(random.integers(0, 4))
        return struct.pack(">BxHHBx", 251, 640, 480, screens) + bytes(16 * screens)
    body = random.integers(0, 256, MESSAGE_BYTES[kind] - 1, dtype=np.uint8).tobytes()
    return bytes([kind]) + (b"\0" + body[1:] if kind == 255 else body)


def test_any_conversation_is_survived_and_bounded() -> None:
    """Without sockets: thousands of messages in any order, while the guest's screen changes."""
    random = np.random.default_rng(21)
    seat = FakeSeat(noise(200, 150))
    pictures = [noise(200, 150, 1), noise(200, 150, 2), noise(65, 33), noise(1, 1), noise(720, 400)]
    ended = 0
    for _ in range(150):
        session = Session(seat, "x", None, lambda: (200, 150))
        session.feed(HELLO)
        picture = pictures[0]
        try:
            for _ in range(40):
                session.feed(random_message(random))
                if random.random() < 0.3:
                    picture = pictures[random.integers(len(pictures))]
                    session.changed(all_tiles(picture.shape[1], picture.shape[0], True))
                session.update(picture)
                assert len(session.out) < 8 << 20
                session.out.clear()
        except ProtocolError:
            ended += 1
        session.leave()
        assert len(session._input) < 9000
    seat.close()
    assert 10 < ended < 140, "both kinds of conversation were had"


def test_who_does_not_read_does_not_make_the_server_grow(serve: Serve) -> None:
    seat, address = serve(noise(1024, 768))
    with RfbClient(address) as slow, RfbClient(address) as quick:
        slow.set_encodings(RAW, DESKTOP_SIZE)
        slow.set_format(32, 24, False, (255, 255, 255), (16, 8, 0))
        quick.set_encodings(TIGHT, DESKTOP_SIZE)
        slow.ask(False)
        for seed in range(4):
            slow.ask(False)
            seat.picture = noise(1024, 768, 20 + seed)
            settle(quick, seat)
        # At most two pictures wait for the slow one, however many there were: it takes what it has and then the newest.
        for _ in range(3):
            slow.update()
            slow.ask()
        settle(slow, seat)


def test_silent_clients_are_dropped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vnc, "_HANDSHAKE_S", 0.2)
    _, address = serve()
    with socket.create_connection(address, timeout=10) as raw:
        assert raw.recv(12) == b"RFB 003.008\n"
        assert raw.recv(1) == b""


def test_too_many_clients(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vnc, "MOST_CLIENTS", 2)
    _, address = serve()
    with RfbClient(address), RfbClient(address), pytest.raises((EOFError, ConnectionError)):
        RfbClient(address)
    eventually(lambda: _connects(address))


def _connects(address: tuple[str, int]) -> bool:
    try:
        RfbClient(address).close()
    except (EOFError, ConnectionError):
        return False
    return True


def test_a_port_in_use_is_told_with_a_remedy(serve: Serve) -> None:
    _, (host, port) = serve()
    with pytest.raises(UserError, match="vnc=ADDR:PORT"):
        VncServer(VncOptions(host, port))


def test_close_without_start_and_twice() -> None:
    server = VncServer(VncOptions(port=0))
    server.close()
    server.close()
