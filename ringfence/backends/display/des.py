"""DES encryption of single blocks (FIPS 46-3), which the VNC authentication of RFB needs and nothing else here may use.

Straight from the standard's tables: bits are numbered from 1 at the most significant end, and a block is one integer.
"""

from __future__ import annotations

from collections.abc import Sequence

_PC1 = (
    *(57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36),
    *(63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4),
)
_PC2 = (
    *(14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2),
    *(41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32),
)
_SHIFTS = (1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1)
_IP = tuple(row - 8 * n for row in (58, 60, 62, 64, 57, 59, 61, 63) for n in range(8))
_IP_INVERSE = tuple(_IP.index(n) + 1 for n in range(1, 65))
_E = tuple((4 * group + n - 1) % 32 + 1 for group in range(8) for n in range(6))
_P = (16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10, 2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25)
# S1 to S8: four rows of sixteen hexadecimal digits each
_S = tuple(
    [int(digit, 16) for digit in box]
    for box in (
        "e4d12fb83a6c59070f74e2d1a6cb953841e8d62bfc973a50fc8249175b3ea06d",
        "f18e6b34972dc05a3d47f28ec01a69b50e7ba4d158c6932fd8a13f42b67c05e9",
        "a09e63f51dc7b428d709346a285ecbf1d6498f30b12c5ae71ad069874fe3b52c",
        "7de3069a1285bc4fd8b56f03472c1ae9a690cb7df13e52843f06a1d8945bc72e",
        "2c417ab6853fd0e9eb2c47d150fa3986421bad78f9c5630eb8c71e2d6f09a453",
        "c1af92680d34e75baf427c9561de0b389ef528c3704a1db6432c95fabe17608d",
        "4b2ef08d3c975a61d0b7491ae35c2f8614bdc37eaf6805926bd814a7950fe23c",
        "d2846fb1a93e50c71fd8a374c56b0e927b419ce206adf35821e74a8dfc90356b",
    )
)


def _permute(value: int, width: int, table: Sequence[int]) -> int:
    result = 0
    for position in table:
        result = result << 1 | value >> (width - position) & 1
    return result


def _round_keys(key: int) -> list[int]:
    halves = _permute(key, 64, _PC1)
    c, d = halves >> 28, halves & 0xFFF_FFFF
    keys = []
    for shift in _SHIFTS:
        c = (c << shift | c >> (28 - shift)) & 0xFFF_FFFF
        d = (d << shift | d >> (28 - shift)) & 0xFFF_FFFF
        keys.append(_permute(c << 28 | d, 56, _PC2))
    return keys


def _f(right: int, key: int) -> int:
    mixed = _permute(right, 32, _E) ^ key
    result = 0
    for number, box in enumerate(_S):
        six = mixed >> (42 - 6 * number) & 0x3F
        result = result << 4 | box[(six >> 4 & 2 | six & 1) * 16 + (six >> 1 & 0xF)]
    return _permute(result, 32, _P)


def encrypt_block(key: bytes, block: bytes) -> bytes:
    """Eight bytes in, eight out."""
    halves = _permute(int.from_bytes(block, "big"), 64, _IP)
    left, right = halves >> 32, halves & 0xFFFF_FFFF
    for round_key in _round_keys(int.from_bytes(key, "big")):
        left, right = right, left ^ _f(right, round_key)
    return _permute(right << 32 | left, 64, _IP_INVERSE).to_bytes(8, "big")


def vnc_response(password: str, challenge: bytes) -> bytes:
    """What a client that knows the password answers to the sixteen bytes `challenge` (RFC 6143, 7.2.2).

    The key is the first eight bytes of the password, with the bits of each byte in the reverse order.
    """
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:8].ljust(8, b"\0"))
    return encrypt_block(key, challenge[:8]) + encrypt_block(key, challenge[8:16])
