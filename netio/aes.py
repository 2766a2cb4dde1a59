"""AES-128 of many blocks at once, as table look-ups on arrays. Its time depends on key and data, as that of any table.

Source:
    FIPS 197; the four tables of a round are those of the AES proposal (Daemen and Rijmen, 1999, section 5.2.1).
"""

from __future__ import annotations

import numpy as np

from .packet_index import Array

ROUNDS = 10


class AES128:
    """One key's cipher.

    Args:
        key: 16 bytes.
    """

    def __init__(self, key: bytes) -> None:
        words = [int.from_bytes(key[start : start + 4]) for start in range(0, 16, 4)]
        constant = 1
        while len(words) < 4 * (ROUNDS + 1):
            word = words[-1]
            if len(words) % 4 == 0:
                word = _substituted((word << 8 | word >> 24) & 0xFFFFFFFF) ^ constant << 24
                constant = _doubled(constant)
            words.append(words[-4] ^ word)
        self._round_keys = np.array(words, np.uint32).reshape(-1, 4)

    def encrypt(self, blocks: Array) -> Array:
        """Encrypt blocks: (n, 4) uint32, words in network order, to the same."""
        state = [blocks[:, column] ^ self._round_keys[0, column] for column in range(4)]
        for number in range(1, ROUNDS):
            state = [
                _TABLES[0][state[column] >> 24]
                ^ _TABLES[1][state[(column + 1) % 4] >> 16 & 0xFF]
                ^ _TABLES[2][state[(column + 2) % 4] >> 8 & 0xFF]
                ^ _TABLES[3][state[(column + 3) % 4] & 0xFF]
                ^ self._round_keys[number, column]
                for column in range(4)
            ]
        last = [
            _BOX[state[column] >> 24] << 24
            ^ _BOX[state[(column + 1) % 4] >> 16 & 0xFF] << 16
            ^ _BOX[state[(column + 2) % 4] >> 8 & 0xFF] << 8
            ^ _BOX[state[(column + 3) % 4] & 0xFF]
            ^ self._round_keys[ROUNDS, column]
            for column in range(4)
        ]
        return np.stack(last, axis=1)


def _doubled(value: int) -> int:
    """A number of GF(2**8) times x."""
    return value << 1 ^ (0x11B if value & 0x80 else 0)


def _box() -> list[int]:
    """The S-box: the inverse in GF(2**8), then an affine map."""
    powers = [1]
    for _ in range(254):
        powers.append(powers[-1] ^ _doubled(powers[-1]))
    box = [0x63] * 256
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        rotated = inverse | inverse << 8
        box[value] = 0x63 ^ (inverse ^ rotated >> 7 ^ rotated >> 6 ^ rotated >> 5 ^ rotated >> 4) & 0xFF
    return box


def _substituted(word: int) -> int:
    return int.from_bytes(_BOX[list(word.to_bytes(4))].astype(np.uint8).tobytes())


_BOX = np.array(_box(), np.uint32)
_DOUBLED = np.array([_doubled(value) for value in _BOX.tolist()], np.uint32)
_FIRST = _DOUBLED << 24 | _BOX << 16 | _BOX << 8 | (_BOX ^ _DOUBLED)
_TABLES = [_FIRST >> shift | _FIRST << (32 - shift) % 32 if shift else _FIRST for shift in (0, 8, 16, 24)]
