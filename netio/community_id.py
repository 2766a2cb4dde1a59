"""Community ID: a name of a flow on which Zeek, Suricata, Wireshark and others agree, the same for both directions.

Source:
    Community ID Flow Hashing, version 1 (https://github.com/corelight/community-id-spec); ICMP as Zeek maps it.
"""

from __future__ import annotations

import binascii
import hashlib

import numpy as np

from .keys import Keys
from .packet_index import Array

ICMP, ICMP6 = 1, 58
WITH_PORTS = (ICMP, 6, 17, ICMP6, 132)
ANSWERS = {
    ICMP: {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 10: 9, 9: 10, 17: 18, 18: 17},
    ICMP6: {128: 129, 130: 131, 133: 134, 135: 136, 139: 140, 144: 145}
    | {129: 128, 131: 130, 134: 133, 136: 135, 140: 139, 145: 144},
}
"""Of ICMP's message types those that are asked and answered: each one's other half. All others go one way."""


def community_ids(keys: Keys, seed: int = 0) -> Array:
    """The Community ID of each key: (n,) str, `1:` and 28 characters; empty for what is no IP packet.

    Args:
        keys: of packets or flows; for ICMP the type stands in `source_port`, the code in `destination_port`.
        seed: of 16 bits, the same for all whose IDs are to agree.
    """
    ids = np.full(len(keys), "", "U30")
    source_port, destination_port, one_way = _ports(keys)
    source = np.stack([keys.source_high, keys.source_low], axis=1)
    destination = np.stack([keys.destination_high, keys.destination_low], axis=1)
    swap = ~one_way & _is_after(source, destination, source_port, destination_port)
    low = np.where(swap[:, None], destination, source).astype(">u8").view(np.uint8)
    high = np.where(swap[:, None], source, destination).astype(">u8").view(np.uint8)
    ports = np.stack([np.where(swap, destination_port, source_port), np.where(swap, source_port, destination_port)], 1)
    tail = np.concatenate(
        [np.stack([keys.protocol, np.zeros_like(keys.protocol)], axis=1), ports.astype(">u2").view(np.uint8)], axis=1
    )
    has_ports = np.isin(keys.protocol, WITH_PORTS)
    for version, begin in ((4, 12), (6, 0)):
        for with_ports in (False, True):
            rows = np.flatnonzero((keys.version == version) & (has_ports == with_ports))
            end = 6 if with_ports else 2
            parts = [low[rows, begin:], high[rows, begin:], tail[rows, :end]]
            ids[rows] = _hashed(np.concatenate(parts, axis=1), seed.to_bytes(2))
    return ids


def _ports(keys: Keys) -> tuple[Array, Array, Array]:
    """What stands for the ports: (n,) uint16 each; and whether a key is of a message without an answer: (n,) bool."""
    source_port, destination_port = keys.source_port, keys.destination_port.copy()
    one_way = np.zeros(len(keys), bool)
    for protocol, answers in ANSWERS.items():
        rows = np.flatnonzero(keys.protocol == protocol)
        answer = np.full(1 << 16, -1)
        answer[list(answers)] = list(answers.values())
        answered = answer[source_port[rows]]
        one_way[rows] = answered < 0
        destination_port[rows] = np.where(answered < 0, destination_port[rows], answered)
    return source_port, destination_port, one_way


def _is_after(source: Array, destination: Array, source_port: Array, destination_port: Array) -> Array:
    """Whether the source's address and port are beyond the destination's: (n,) bool."""
    after = source_port > destination_port
    for half in (1, 0):
        equal = source[:, half] == destination[:, half]
        after = np.where(equal, after, source[:, half] > destination[:, half])
    return after


def _hashed(messages: Array, seed: bytes) -> Array:
    """The IDs of messages, (n, bytes) uint8: (n,) str. Each message is hashed once, however many packets have it."""
    if not len(messages):
        return np.empty(0, "U30")
    size = messages.shape[1]
    different, back = np.unique(np.ascontiguousarray(messages).view(f"V{size}")[:, 0], return_inverse=True)
    data = different.tobytes()
    ids = [
        "1:" + binascii.b2a_base64(hashlib.sha1(seed + data[start : start + size]).digest(), newline=False).decode()
        for start in range(0, len(data), size)
    ]
    return np.array(ids)[back.reshape(-1)]
