"""Anonymised addresses: those of other implementations, prefixes kept exactly, one to one, and by key."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aikoryu.netio.aes import AES128
from aikoryu.netio.anonymise import Anonymiser, BadKey
from aikoryu.netio.packet_index import Array

COUNTING = bytes(range(32))
SAMPLE = bytes.fromhex(
    "15 22 17 8d 33 a4 cf 80 13 0a 5b 16 49 90 7d 10 d8 98 8f 83 79 79 65 27 62 57 4c 2d 2a 84 22 02"
)
"""The key of the sample trace that comes with the authors' own implementation."""
FIRST = Anonymiser(COUNTING)


def packed(text: str) -> Array:
    value = int(ipaddress.IPv6Address(text))
    return np.array([[value >> 64, value & 0xFFFFFFFFFFFFFFFF]], np.uint64)


def test_aes_is_aes() -> None:
    # FIPS 197, appendix C.1.
    block = np.frombuffer(bytes.fromhex("00112233445566778899aabbccddeeff"), ">u4").astype(np.uint32)[None]
    cipher = AES128(bytes(range(16))).encrypt(block)
    assert cipher.astype(">u4").tobytes().hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"


@pytest.mark.parametrize(
    ("key", "address", "expected"),
    [
        (COUNTING, "192.0.2.1", "2.90.93.17"),
        (SAMPLE, "128.11.68.132", "135.242.180.132"),
        (SAMPLE, "129.118.74.4", "134.136.186.123"),
    ],
)
def test_ipv4_is_as_others_have_it(key: bytes, address: str, expected: str) -> None:
    changed = Anonymiser(key).ipv4(np.array([int(ipaddress.IPv4Address(address))], np.uint32))
    assert str(ipaddress.IPv4Address(int(changed[0]))) == expected


def test_ipv6_is_as_others_have_it() -> None:
    changed = FIRST.ipv6(packed("2001:db8::1"))
    np.testing.assert_array_equal(changed, packed("dd92:2c44:3fc0:ff1e:7ff9:c7f0:8180:7e00"))


def common(left: int, right: int, bits: int) -> int:
    """How many bits two addresses share from the first on."""
    return bits - (left ^ right).bit_length()


near = st.integers(0, 31).flatmap(lambda bit: st.integers(0, (1 << bit) - 1).map(lambda low: 0x0A141E28 ^ low))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(near, st.integers(0, 0xFFFFFFFF)), min_size=2, max_size=8))
def test_ipv4_prefixes_are_kept_exactly(addresses: list[int]) -> None:
    changed = FIRST.ipv4(np.array(addresses, np.uint32)).tolist()
    for left, right in zip(range(len(addresses) - 1), range(1, len(addresses)), strict=True):
        shared = common(addresses[left], addresses[right], 32)
        assert common(changed[left], changed[right], 32) == shared


@settings(max_examples=10, deadline=None)
@given(st.integers(0, (1 << 128) - 1), st.integers(0, 127), st.integers(0, (1 << 128) - 1))
def test_ipv6_prefixes_are_kept_exactly(address: int, bit: int, noise: int) -> None:
    other = address ^ (1 << bit) ^ (noise & ((1 << bit) - 1))
    rows = np.array([[value >> 64, value & 0xFFFFFFFFFFFFFFFF] for value in (other, address, other)], np.uint64)
    changed = [int(upper) << 64 | int(lower) for upper, lower in FIRST.ipv6(rows).tolist()]
    assert changed[0] == changed[2]
    assert common(changed[0], changed[1], 128) == 127 - bit


def test_all_addresses_of_a_net_stay_a_net() -> None:
    addresses = np.arange(0x0A140000, 0x0A150000, dtype=np.uint32)
    changed = FIRST.ipv4(addresses)
    assert len(np.unique(changed)) == len(addresses)
    assert len(np.unique(changed >> 16)) == 1


def test_an_address_is_the_same_in_every_batch() -> None:
    addresses = np.random.default_rng(1).integers(1 << 32, size=500, dtype=np.uint32)
    batch = FIRST.ipv4(np.concatenate([addresses, addresses]))
    np.testing.assert_array_equal(batch[:500], batch[500:])
    np.testing.assert_array_equal(FIRST.ipv4(addresses[100:101]), batch[100:101])


def test_another_key_gives_other_addresses() -> None:
    addresses = np.arange(100, dtype=np.uint32)
    assert (Anonymiser(SAMPLE).ipv4(addresses) != FIRST.ipv4(addresses)).all()


def test_no_addresses_are_none() -> None:
    assert FIRST.ipv4(np.empty(0, np.uint32)).shape == (0,)
    assert FIRST.ipv6(np.empty((0, 2), np.uint64)).shape == (0, 2)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(BadKey, match="a key of 16 bytes: it must have 32"):
        Anonymiser(bytes(16))
