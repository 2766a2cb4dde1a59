"""Community IDs as the specification's own examples have them."""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aikoryu.netio.community_id import community_ids
from aikoryu.netio.keys import Keys

Flow: TypeAlias = "tuple[int, str, str, int, int]"
# Of the specification's baseline and of pycommunityid's tests: protocol, ends, ports, ID, ID with seed 1.
KNOWN: list[tuple[int, str, str, int, int, str, str]] = [
    (
        58,
        "fe80::200:86ff:fe05:80da",
        "fe80::260:97ff:fe07:69ea",
        135,
        0,
        "dGHyGvjMfljg6Bppwm3bg0LO8TY=",
        "kHa1FhMYIT6Ym2Vm2AOtoOARDzY=",
    ),
    (
        58,
        "fe80::260:97ff:fe07:69ea",
        "fe80::200:86ff:fe05:80da",
        136,
        0,
        "dGHyGvjMfljg6Bppwm3bg0LO8TY=",
        "kHa1FhMYIT6Ym2Vm2AOtoOARDzY=",
    ),
    (
        58,
        "3ffe:507:0:1:260:97ff:fe07:69ea",
        "3ffe:507:0:1:200:86ff:fe05:80da",
        3,
        0,
        "NdobDX8PQNJbAyfkWxhtL2Pqp5w=",
        "OlOWx9psIbBFi7lOCw/4MhlKR9M=",
    ),
    (
        58,
        "3ffe:507:0:1:200:86ff:fe05:80da",
        "3ffe:507:0:1:260:97ff:fe07:69ea",
        3,
        0,
        "/OGBt9BN1ofenrmSPWYicpij2Vc=",
        "Ij4ZxnC87/MXzhOjvH2vHu7LRmE=",
    ),
    (
        58,
        "3ffe:501:410:0:2c0:dfff:fe47:33e",
        "3ffe:507:0:1:200:86ff:fe05:80da",
        1,
        4,
        "hLZd0XGWojozrvxqE0dWB1iM6R0=",
        "W8MHwXpWzpoSTD+cGcaJr4u0ys8=",
    ),
    (
        58,
        "3ffe:501:0:1001::2",
        "3ffe:507:0:1:200:86ff:fe05:80da",
        129,
        0,
        "+TW+HtLHvV1xnGhV1lv7XoJrqQg=",
        "GfZxjAkDk2MkegpBYHV6tadtFXQ=",
    ),
    (58, "fe80::200:86ff:fe05:80da", "ff02::2", 133, 0, "hO+sN4H+MG5MY/8hIrXPqc4ZQz0=", "L7Ka0ZMYu+J3bL4ulW2PrqyXNo8="),
    (1, "192.168.0.89", "192.168.0.1", 8, 0, "X0snYXpgwiv9TZtqg64sgzUn6Dk=", "03g6IloqVBdcZlPyX8r0hgoE7kA="),
    (1, "192.168.0.1", "192.168.0.89", 0, 20, "X0snYXpgwiv9TZtqg64sgzUn6Dk=", "03g6IloqVBdcZlPyX8r0hgoE7kA="),
    (1, "192.168.0.89", "192.168.0.1", 20, 0, "3o2RFccXzUgjl7zDpqmY7yJi8rI=", "lCXHHxavE1Vq3oX9NH5ladQg02o="),
    (1, "192.168.0.89", "192.168.0.1", 20, 1, "tz/fHIDUHs19NkixVVoOZywde+I=", "Ie3wmFyxiEyikbsbcO03d2nh+PM="),
    (1, "10.0.0.1", "10.0.0.2", 11, 0, "YHxtAirCG//0OzkcVAukqKQN9xM=", "XjUibYHaafLQ3pxQeiMI8g25q20="),
    (
        6,
        "2001:470:e5bf:dead:4957:2174:e82c:4887",
        "2607:f8b0:400c:c03::1a",
        63943,
        25,
        "/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
        "eJYTW6AOzFLlSUoESovMjnu7rMw=",
    ),
    (132, "192.168.170.8", "192.168.170.56", 7, 80, "jQgCxbku+pNGw8WPbEc/TS/uTpQ=", "Y1/0jQg6e+I3ZwZZ9LP65DNbTXU="),
    (6, "66.35.250.204", "128.232.110.120", 80, 34855, "LQU9qZlK+B5F3KDmev6m5PMibrg=", "3V71V58M3Ksw/yuFALMcW0LAHvc="),
    (6, "10.0.0.1", "10.0.0.2", 10, 11569, "SXBGMX1lBOwhhoDrZynfROxnhnM=", "HmBRGR+fUyXF4t8WEtal7Y0gEAo="),
    (17, "192.168.1.52", "8.8.8.8", 54585, 53, "d/FP5EW3wiY1vCndhwleRRKHowQ=", "Q9We8WO3piVF8yEQBNJF4uiSVrI="),
    (46, "10.1.24.4", "10.1.12.1", 0, 0, "/nQI4Rh/TtY3mf0R2gJFBkVlgS4=", "BK3BVW3U2eemuwVQVN3zd/GULno="),
]


def keys_of(flows: list[Flow]) -> Keys:
    protocols, sources, destinations, source_ports, destination_ports = zip(*flows, strict=True)
    ends = []
    for side in (sources, destinations):
        values = [int(ipaddress.ip_address(address)) for address in side]
        ends.append(np.array([[value >> 64, value & 0xFFFFFFFFFFFFFFFF] for value in values], np.uint64))
    keys = Keys.ipv6(*ends, source_ports, destination_ports, protocols)
    keys.version[:] = [ipaddress.ip_address(address).version for address in sources]
    return keys


@pytest.mark.parametrize("seed", [0, 1])
def test_ids_are_as_published(seed: int) -> None:
    ids = community_ids(keys_of([flow[:5] for flow in KNOWN]), seed)
    assert ids.tolist() == ["1:" + (flow[6] if seed else flow[5]) for flow in KNOWN]


@given(st.lists(st.tuples(st.sampled_from([6, 17, 132, 46]), *[st.integers(0, 3)] * 4), min_size=1, max_size=12))
def test_both_directions_have_one_id(flows: list[tuple[int, int, int, int, int]]) -> None:
    there = keys_of([(protocol, f"10.0.0.{a}", f"10.0.0.{b}", p, q) for protocol, a, b, p, q in flows])
    back = keys_of([(protocol, f"10.0.0.{b}", f"10.0.0.{a}", q, p) for protocol, a, b, p, q in flows])
    ids = community_ids(there).tolist()
    assert ids == community_ids(back).tolist()
    named: dict[object, str] = {}
    for (protocol, a, b, p, q), name in zip(flows, ids, strict=True):
        flow = (protocol, frozenset([(a, p), (b, q)]) if protocol != 46 else frozenset([a, b]))
        assert named.setdefault(flow, name) == name
    assert len(set(named.values())) == len(named)


def test_what_is_no_ip_packet_has_no_id() -> None:
    keys = keys_of([KNOWN[0][:5], KNOWN[7][:5]])
    keys.version[0] = 0
    assert community_ids(keys).tolist() == ["", "1:" + KNOWN[7][5]]


def test_keys_are_left_as_they_are() -> None:
    keys = keys_of([KNOWN[7][:5]])
    community_ids(keys)
    assert (keys.source_port.tolist(), keys.destination_port.tolist()) == ([8], [0])


def test_no_keys_have_no_ids() -> None:
    assert community_ids(Keys.ipv4([], [], [], [], [])).shape == (0,)
