"""Random data worth trying: integers at the edges, floating-point numbers of every class, vectors of either."""

from __future__ import annotations

from typing import Any

import numpy as np

U64 = np.uint64
_EDGES = np.array(
    [
        0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1
        << 62, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 2, 0xFFFFFFFF80000000, 0xFFFFFFFFFFFFFF80, 0x0101010101010101,
        0x8080808080808080
    ],
    U64,
)  # fmt: skip
_F32 = np.array(
    [
        0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC00000, 0x7F800001, 0x7FBFFFFF, 1,
        0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x4F000000, 0xCF000000, 0x4EFFFFFF, 0x5F000000, 0x3F000000, 0x3FC00000,
        0x40200000, 0x4B000001, 0x3EFFFFFF, 0x4F800000, 0xBF000000, 0x33800000, 0x34000000
    ],
    U64,
)  # fmt: skip
_F64 = np.array(
    [
        0, 1 << 63, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000001,
        0xFFF8000000000000, 0x7FF0000000000001, 0x7FF7FFFFFFFFFFFF, 1, 0x8000000000000001, 0x000FFFFFFFFFFFFF, 0x0010000000000000,
        0x7FEFFFFFFFFFFFFF, 0x43E0000000000000, 0xC3E0000000000000, 0x41DFFFFFFFC00000, 0x41E0000000000000, 0xC1E0000000000000,
        0xC1E0000000100000, 0x3FE0000000000000, 0x3FF8000000000000, 0x4004000000000000, 0x4330000000000001, 0x3FDFFFFFFFFFFFFF,
        0x36A0000000000000, 0x380FFFFFFFFFFFFF, 0x47EFFFFFF0000000, 0x3690000000000000, 0x3CA0000000000000
    ],
    U64,
)  # fmt: skip


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """64-bit integers: a third edges, the others random with random magnitudes."""
    raw = rng.integers(0, 1 << 64, shape, dtype=U64)
    short = raw >> rng.integers(0, 64, shape, dtype=U64)
    choice = rng.random(shape)
    return np.where(choice < 0.3, _EDGES[rng.integers(0, len(_EDGES), shape)], np.where(choice < 0.75, raw, short))


def _floats(rng: np.random.Generator, n: int, specials: Any, exponent_bits: int, fraction_bits: int) -> Any:
    bias = (1 << exponent_bits - 1) - 1
    near = rng.integers(bias - 70, bias + 70, n, dtype=U64)
    anywhere = rng.integers(0, 1 << exponent_bits, n, dtype=U64)
    exponent = np.where(rng.random(n) < 0.8, near, anywhere)
    fraction = rng.integers(0, 1 << fraction_bits, n, dtype=U64)
    keep = rng.integers(0, fraction_bits, n, dtype=U64)  # short fractions make exact and halfway results
    fraction = np.where(rng.random(n) < 0.5, fraction, fraction >> keep << keep)
    sign = rng.integers(0, 2, n, dtype=U64) << U64(exponent_bits + fraction_bits)
    value = sign | exponent << U64(fraction_bits) | fraction
    return np.where(rng.random(n) < 0.3, specials[rng.integers(0, len(specials), n)], value)


def singles(rng: np.random.Generator, n: int) -> Any:
    return _floats(rng, n, _F32, 8, 23)


def doubles(rng: np.random.Generator, n: int) -> Any:
    return _floats(rng, n, _F64, 11, 52)


def lane_kind(name: str) -> str:
    """What the XMM operands of a mnemonic hold: "single", "double", "text" or "integer"."""
    if name.startswith("pcmp") and "str" in name:
        return "text"
    if name.startswith("cvt"):
        source = name.removeprefix("cvtt").removeprefix("cvt")
        return "double" if source.startswith(("sd", "pd")) else "single" if source.startswith(("ss", "ps")) else "integer"
    if name.startswith("p") and not name.startswith(("ps2", "pd2")):
        return "integer"
    if name.endswith(("ss", "ps")):
        return "single"
    return "double" if name.endswith(("sd", "pd", "sd_sse")) else "integer"


def vectors(rng: np.random.Generator, n: int, kind: str) -> Any:
    """n 128-bit values as (n, 2) qwords."""
    match kind:
        case "single":
            lanes = singles(rng, 4 * n).reshape(n, 2, 2)
            data = lanes[:, :, 0] | lanes[:, :, 1] << U64(32)
        case "double":
            data = doubles(rng, 2 * n).reshape(n, 2)
        case "text":
            alphabet = np.array([0, 1, 1, 2, 2, 3, 0x7F, 0x80, 0xFF], np.uint8)
            data = alphabet[rng.integers(0, len(alphabet), (n, 16))].view(U64)
            return np.where((rng.random(n) < 0.9)[:, None], data, integers(rng, (n, 2)))
        case _:
            data = integers(rng, (n, 2))
            small = np.array([0, 1, 0x7F, 0x80, 0xFF, 0x81], np.uint8)[rng.integers(0, 6, (n, 16))].view(U64)
            return np.where((rng.random(n) < 0.3)[:, None], small, data)
    return np.where((rng.random(n) < 0.95)[:, None], data, integers(rng, (n, 2)))


def extended(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """Double-extended numbers: (64-bit significands, 16-bit sign and exponent); all classes, unsupported encodings too."""
    choice = rng.random(n)
    exponent = rng.integers(0x3FFF - 70, 0x3FFF + 70, n)
    exponent = np.where(choice < 0.15, 0x3FFF, exponent)
    exponent = np.where(choice > 0.7, rng.integers(0, 0x8000, n), exponent)
    exponent = np.where(choice > 0.8, 0, exponent)
    exponent = np.where(choice > 0.88, 0x7FFF, exponent)
    mantissa = rng.integers(0, 1 << 63, n, dtype=U64)
    keep = rng.integers(0, 63, n, dtype=U64)
    mantissa = np.where(rng.random(n) < 0.5, mantissa, mantissa >> keep << keep)
    mantissa = np.where(rng.random(n) < 0.1, U64(0), mantissa)
    top = np.where((choice > 0.8) & (choice <= 0.88), U64(0), U64(1 << 63))
    top = np.where(rng.random(n) < 0.02, U64(1 << 63) - top, top)  # pseudo-denormals, unnormals
    return mantissa | top, (exponent | rng.integers(0, 2, n) << 15).astype(np.uint16)


def x87_memory(rng: np.random.Generator, n: int, element: int, bits: int) -> Any:
    """16 bytes for a memory operand of an x87 instruction; the class of number is drawn, not looked up."""
    if bits == 80:
        mantissa, high = extended(rng, n)
        packed_decimal = np.zeros(n, U64)
        for k in range(16):
            packed_decimal |= rng.integers(0, 10, n, dtype=U64) << U64(4 * k)
        decimal = rng.random(n) < 0.3
        return np.stack(
            [np.where(decimal, packed_decimal, mantissa), np.where(decimal, rng.integers(0, 1 << 8, n, dtype=U64), high.astype(U64))], 1
        )
    low = singles(rng, n) if bits == 32 else doubles(rng, n) if bits == 64 else integers(rng, (n,))
    return np.stack([np.where(rng.random(n) < 0.7, low, integers(rng, (n,))), integers(rng, (n,))], 1)
