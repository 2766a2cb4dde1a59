"""Addresses replaced so that two that share their first n bits, and no more, still do: subnets stay subnets.

The same key gives the same addresses, whatever the batch, and those of every other implementation of Crypto-PAn.
Whoever knows some pairs of addresses knows the prefixes of others: it hides who, not that two are neighbours.

Source:
    Xu, Fan, Ammar and Moon, Prefix-Preserving IP Address Anonymization, ICNP 2002.
"""

from __future__ import annotations

import numpy as np

from .aes import AES128
from .errors import NetError
from .packet_index import Array
from .rules import masks

KEY_BYTES = 32
BLOCK = 1 << 14
"""Blocks encrypted at once: words and tables stay in the second-level cache."""


class BadKey(NetError):
    """The key is not 32 bytes. Whoever gave it must take 32, as of `secrets.token_bytes(32)`, and keep them."""

    code = "bad_key"


class Anonymiser:
    """One key's mapping of addresses, one to one.

    Args:
        key: 32 bytes: the key of AES, and what short prefixes are filled up with.

    Raises:
        BadKey: it is of another length.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise BadKey(f"a key of {len(key)} bytes: it must have {KEY_BYTES}")
        self._cipher = AES128(key[:16])
        pad = self._cipher.encrypt(np.frombuffer(key[16:], ">u4").astype(np.uint32)[None])[0]
        self._pad = _halves(pad[None])[:, 0]

    def ipv4(self, addresses: Array) -> Array:
        """Addresses of (n,) uint32, anonymised."""
        different, back = np.unique(addresses, return_inverse=True)
        upper = different.astype(np.uint64) << np.uint64(32)
        flips, _ = self._flips(upper, np.zeros_like(upper), 32)
        changed = different ^ (flips >> np.uint64(32)).astype(np.uint32)
        return changed[back.reshape(-1)]

    def ipv6(self, addresses: Array) -> Array:
        """Addresses of (n, 2) uint64, upper and lower half, anonymised."""
        order = np.lexsort((addresses[:, 1], addresses[:, 0]))
        upper, lower = addresses[order].T
        flips = np.stack(self._flips(upper, lower, 128), axis=1)
        changed = np.empty_like(addresses)
        changed[order] = addresses[order] ^ flips
        return changed

    def _flips(self, upper: Array, lower: Array, bits: int) -> tuple[Array, Array]:
        """Which bits of addresses change: upper and lower half, (n,) uint64 each.

        Each bit changes as a secret function of the bits before it says. Every prefix is looked at once, whichever
        addresses share it.

        Args:
            upper, lower: (n,) uint64 each, the addresses from the uppermost bit on, sorted.
            bits: how many of them are addresses'.
        """
        flips = [np.zeros_like(upper), np.zeros_like(lower)]
        (uppers, lowers) = masks(np.arange(bits), 128)
        for bit in range(bits):
            prefix = upper & uppers[bit], lower & lowers[bit]
            is_first = np.ones(len(upper), bool)
            is_first[1:] = (prefix[0][1:] != prefix[0][:-1]) | (prefix[1][1:] != prefix[1][:-1])
            first = np.flatnonzero(is_first)
            padded = prefix[0][first] | (self._pad[0] & ~uppers[bit]), prefix[1][first] | (self._pad[1] & ~lowers[bit])
            flip = self._uppermost(*padded)[np.cumsum(is_first) - 1]
            flips[bit // 64] |= flip << np.uint64(63 - bit % 64)
        return flips[0], flips[1]

    def _uppermost(self, upper: Array, lower: Array) -> Array:
        """The uppermost bit of each block, encrypted: (n,) uint64."""
        low = np.uint64(0xFFFF_FFFF)
        shift = np.uint64(32)
        blocks = np.stack([upper >> shift, upper & low, lower >> shift, lower & low], axis=1).astype(np.uint32)
        bits = [
            self._cipher.encrypt(blocks[start : start + BLOCK])[:, 0] >> 31 for start in range(0, len(blocks), BLOCK)
        ]
        return np.concatenate([np.empty(0, np.uint32), *bits]).astype(np.uint64)


def _halves(words: Array) -> Array:
    """Blocks of (n, 4) uint32 as upper and lower halves: (2, n) uint64."""
    wide = words.astype(np.uint64)
    return np.stack([wide[:, 0] << np.uint64(32) | wide[:, 1], wide[:, 2] << np.uint64(32) | wide[:, 3]])
