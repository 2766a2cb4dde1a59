"""What packets are labelled with: by first bytes, by ports, by the IP header, and never by a neighbour's bytes."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.netio import signature_tables
from aikoryu.netio.capture import open_capture
from aikoryu.netio.dissect import dissect
from aikoryu.netio.flow_key import FlowKeys, KeyChoice
from aikoryu.netio.labels import COLUMNS, How, Labels, label, labelled
from aikoryu.netio.packets import HEADER_DTYPES, Headers, Packets
from aikoryu.netio.protocols import CLIENT_PORTS, TCP_PORTS, UDP_PORTS, Protocol
from aikoryu.netio.signatures import EITHER, SIGNATURES, TCP, UDP, Signature

from . import truth

Array = np.ndarray[Any, Any]
NOWHERE = 50000
"""A port that says nothing."""


def payloads(given: list[tuple[int, int, int, bytes]], around: bytes = b"") -> tuple[Array, Array, Headers]:
    """Packets that are nothing but payload.

    Args:
        given: transport protocol, both ports and payload of each.
        around: what lies between them.
    """
    rows = len(given)
    columns = {name: np.zeros(rows, dtype) for name, dtype in HEADER_DTYPES.items()}
    columns["version"][:] = 4
    for name, values in zip(("protocol", "sport", "dport"), zip(*given, strict=True), strict=False):
        columns[name][:] = values
    columns["payload_captured"][:] = [len(payload) for *_, payload in given]
    pieces = [around, *(payload + around for *_, payload in given)]
    offsets = np.cumsum([len(piece) for piece in pieces])[:-1]
    return np.frombuffer(b"".join(pieces), np.uint8), offsets, Headers(**columns)


def found(given: list[tuple[int, int, int, bytes]], around: bytes = b"") -> list[tuple[str, str]]:
    labels = label(*payloads(given, around))
    return [
        (Protocol(number).title, How(how).name)
        for number, how in zip(labels.protocol.tolist(), labels.how.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("transport", "ports", "payload", "expected"),
    [
        (TCP, (NOWHERE, 51000), bytes.fromhex("16030100c8010000c40303"), ("TLS", "SIGNATURE")),
        (TCP, (443, 51000), b"GET / HTTP/1.1\r\n", ("HTTP", "SIGNATURE")),
        (TCP, (8080, 51000), b"GE", ("HTTP", "PORT")),
        (TCP, (NOWHERE, 51000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ("HTTP/2", "SIGNATURE")),
        (TCP, (NOWHERE, 51000), b"OPTIONS sip:a@b SIP/2.0", ("SIP", "SIGNATURE")),
        (TCP, (NOWHERE, 51000), b"OPTIONS * HTTP/1.1", ("HTTP", "SIGNATURE")),
        (TCP, (22, 51000), b"SSH-2.0-OpenSSH_9.2\r\n", ("SSH", "SIGNATURE")),
        (TCP, (21, 51000), b"220 ready\r\n", ("FTP", "SIGNATURE")),
        (TCP, (25, 51000), b"220 ready\r\n", ("SMTP", "SIGNATURE")),
        (TCP, (NOWHERE, 51000), b"220 ready\r\n", ("", "NONE")),
        (TCP, (3306, 51000), b"\x4a\0\0\0\x0a8.0.36\0", ("MySQL", "SIGNATURE")),
        (TCP, (NOWHERE, 51000), b"\x10\x0e\0\4MQTT\4\2\0\x3c\0\2ab", ("MQTT", "SIGNATURE")),
        (TCP, (NOWHERE, 51000), b"\0\0\0\x29\0\3\0\0user\0", ("PostgreSQL", "SIGNATURE")),
        (TCP, (NOWHERE, 51000), b"\x80\0\0\x78abcd\0\0\0\0\0\0\0\2\0\1\x86\xa3", ("NFS", "SIGNATURE")),
        (UDP, (NOWHERE, 51000), bytes.fromhex("0102010000010000000000000161016200"), ("DNS", "SIGNATURE")),
        (UDP, (5353, 5353), bytes.fromhex("0000840000000001000000000161016200"), ("mDNS", "SIGNATURE")),
        (UDP, (137, 137), bytes.fromhex("000101100001000000000000204546"), ("NetBIOS", "SIGNATURE")),
        (UDP, (68, 67), b"\1\1\6\0" + bytes(232) + bytes.fromhex("63825363"), ("DHCP", "SIGNATURE")),
        (UDP, (68, 67), b"\1\1\6\0" + bytes(231) + bytes.fromhex("63825363"), ("DHCP", "PORT")),
        (UDP, (443, 51000), bytes.fromhex("c000000001088394c8f03e515708"), ("QUIC", "SIGNATURE")),
        (UDP, (NOWHERE, 51000), bytes.fromhex("000100002112a442") + bytes(12), ("STUN", "SIGNATURE")),
        (UDP, (123, 123), b"\x23" + bytes(47), ("NTP", "SIGNATURE")),
        (UDP, (123, 123), b"\x23" + bytes(46), ("NTP", "PORT")),
        (UDP, (51820, 51000), b"\1\0\0\0" + bytes(144), ("WireGuard", "SIGNATURE")),
        (UDP, (51820, 51000), b"\7\0\0\1", ("", "NONE")),
        (UDP, (4789, 51000), b"\x08\0\0\0\0\0\7\0", ("VXLAN", "SIGNATURE")),
        (1, (0, 0), b"GET / HTTP/1.1", ("ICMP", "HEADER")),
        (99, (80, 80), b"GET / HTTP/1.1", ("", "NONE")),
    ],
)
def test_label_of(transport: int, ports: tuple[int, int], payload: bytes, expected: tuple[str, str]) -> None:
    assert found([(transport, *ports, payload), (transport, *ports[::-1], payload)]) == [expected] * 2


def test_the_lower_port_is_likelier_the_servers() -> None:
    assert found([(TCP, 80, 6667, b""), (TCP, 6667, 80, b""), (TCP, 1080, 1079, b""), (UDP, NOWHERE, 443, b"")]) == [
        ("HTTP", "PORT"),
        ("HTTP", "PORT"),
        ("SOCKS", "PORT"),
        ("QUIC", "PORT"),
    ]


def test_fragments_and_packets_without_ip_have_no_first_bytes() -> None:
    blob, offsets, headers = payloads([(TCP, 80, 80, b"GET / HTTP/1.1")] * 3 + [(1, 0, 0, b"")])
    headers.fragment_offset[[1, 3]] = 1480
    headers.version[2] = 0
    labels = label(blob, offsets, headers)
    assert labels.titles() == ["HTTP", "", "", "ICMP"]
    assert labels.how.tolist() == [How.SIGNATURE, How.NONE, How.NONE, How.HEADER]


def made(signature: Signature, fill: int) -> bytes:
    """A payload that fits, with `fill` for every bit that is free."""
    data = bytearray([fill]) * signature.reach()
    for place, (mask, value) in signature.bytes().items():
        data[place] = value | (fill & ~mask)
    return bytes(data)


def port_of(protocol: Protocol, transport: int) -> int:
    ports = TCP_PORTS if transport == TCP else UDP_PORTS
    return next((port for port, there in ports.items() if there == protocol), NOWHERE)


EVERY = [(signature, transport) for signature in SIGNATURES for transport in signature.transports]


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_every_signature_is_found(fill: int) -> None:
    """But for those that an earlier one takes where the free bits are so."""
    given = [(t, port_of(s.protocol, t) if s.at_port else NOWHERE, 51000, made(s, fill)) for s, t in EVERY]
    plain = [by_hand(*row) for row in given]
    assert found(given) == [(protocol.title, "SIGNATURE") for protocol in plain]
    taken = [s.protocol for (s, _), protocol in zip(EVERY, plain, strict=True) if s.protocol != protocol]
    assert len(taken) < 6, taken


def by_hand(transport: int, sport: int, dport: int, payload: bytes) -> Protocol:
    """The first signature that fits, byte for byte."""
    ports = TCP_PORTS if transport == TCP else UDP_PORTS
    for signature in SIGNATURES:
        if transport not in signature.transports or len(payload) < signature.reach():
            continue
        if signature.at_port and signature.protocol not in (ports.get(sport), ports.get(dport)):
            continue
        if all(payload[place] & mask == value for place, (mask, value) in signature.bytes().items()):
            return signature.protocol
    return Protocol.UNKNOWN


def random_payloads(count: int, seed: int) -> list[tuple[int, int, int, bytes]]:
    """Payloads that nearly fit: cut, with a byte changed, on a port of this or another protocol."""
    random = np.random.default_rng(seed)
    ports = np.array([*TCP_PORTS, *UDP_PORTS, NOWHERE, CLIENT_PORTS, 51820])
    given = []
    for at in random.integers(len(EVERY), size=count).tolist():
        signature, transport = EVERY[at]
        data = bytearray(made(signature, int(random.integers(256))))
        if random.random() < 0.5:
            data[int(random.integers(len(data)))] = int(random.integers(256))
        cut = int(random.integers(len(data) + 1)) if random.random() < 0.3 else len(data) + 8
        port = port_of(signature.protocol, transport) if random.random() < 0.5 else int(random.choice(ports))
        transport = transport if random.random() < 0.9 else int(random.choice(EITHER))
        given.append((transport, port, 51000, bytes(data + b"\0" * 8)[:cut]))
    return given


@pytest.mark.parametrize("around", [b"", b"\0" * 300, b"GET SSH-\x16\x03\x01\0\1" * 30])
def test_labels_are_those_of_a_plain_loop_whatever_lies_around(around: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_tables, "BLOCK_ROWS", 100)
    signature_tables.tables_in.cache_clear()
    given = random_payloads(1500, 1)
    labels = label(*payloads(given, around))
    signature_tables.tables_in.cache_clear()
    by_signature = np.where(labels.how == How.SIGNATURE, labels.protocol, 0)
    assert by_signature.tolist() == [by_hand(*row) for row in given]
    assert Counter(labels.how.tolist()).keys() == {How.NONE, How.PORT, How.SIGNATURE}


def test_torch_gives_the_same_bits() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `worker`")
    blob, offsets, headers = payloads(random_payloads(3000, 2))
    expected = label(blob, offsets, headers)
    tensors = {name: torch.from_numpy(getattr(headers, name)) for name in COLUMNS}
    there = torch.from_numpy(blob.copy()), torch.from_numpy(offsets.astype(np.uint32))
    protocol, how = labelled(*there, tensors, torch, torch.device("cpu"))
    assert (protocol.dtype, how.dtype) == (torch.uint16, torch.uint8)
    np.testing.assert_array_equal(protocol.numpy(), expected.protocol)
    np.testing.assert_array_equal(how.numpy(), expected.how)


def test_nothing_has_no_labels() -> None:
    assert len(label(np.zeros(0, np.uint8), np.zeros(0, np.int64), payloads([(TCP, 1, 1, b"")])[2])) == 1
    columns = {name: np.zeros(0, dtype) for name, dtype in HEADER_DTYPES.items()}
    assert label(np.zeros(0, np.uint8), np.zeros(0, np.int64), Headers(**columns)).titles() == []


def test_signatures_touch_two_words_and_numbers_fit_a_byte() -> None:
    for signature in SIGNATURES:
        touched = signature.bytes()
        assert 1 <= len({place // 8 for place in touched}) <= 2, signature
        assert 0 < signature.reach() < 256, signature
        assert all(len(token) in (2, 8) for text in signature.pattern.values() for token in text.split()), signature
        if signature.at_port:
            assert all(port_of(signature.protocol, transport) != NOWHERE for transport in signature.transports), (
                signature
            )
    assert max(Protocol) < 256
    assert len({protocol.title for protocol in Protocol}) == len(Protocol)


# --- flows ------------------------------------------------------------------------------------------------------------


def keys_of(flows: list[int]) -> FlowKeys:
    words = np.zeros((6, len(flows)), np.uint64)
    words[4] = flows
    return FlowKeys(words, np.zeros(len(flows), np.uint8))


def test_packets_of_a_flow_have_the_first_of_its_surest_labels() -> None:
    tls, http = int(Protocol.TLS), int(Protocol.HTTP)
    labels = Labels(
        np.array([tls, http, http, 0, tls, tls, tls, 0, tls], np.uint16),
        np.array([How.PORT, How.SIGNATURE, How.SIGNATURE, 0, How.PORT, How.PORT, How.SIGNATURE, 0, How.PORT], np.uint8),
    )
    joined = labels.of_flows(keys_of([1, 1, 2, 3, 2, 2, 1, 1, 3]))
    assert joined.protocol.tolist() == [http, http, http, tls, http, http, http, http, tls]
    assert joined.how.tolist() == [2, 2, 2, 1, 2, 2, 2, 2, 1]
    assert len(Labels(np.empty(0, np.uint16), np.empty(0, np.uint8)).of_flows(keys_of([]))) == 0


# --- nDPI's opinion ---------------------------------------------------------------------------------------------------

NDPI = {
    "SMBV23": Protocol.SMB,
    "SMBV1": Protocol.SMB,
    "WSD": Protocol.WSD,
    "S7COMMPLUS": Protocol.S7,
    "HTTP_CONNECT": Protocol.HTTP,
    "WEBSOCKET": Protocol.HTTP,
}
"""Names of nDPI's that are not ours."""


def ndpi_labels(capture: Path) -> list[dict[str, str]]:
    path = truth.PACKETS / "truth" / f"{capture.name}.l7.csv.gz"
    if not path.is_file():
        return []
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def ndpi_protocols(name: str) -> set[Protocol | None]:
    """What a label names: `TLS.Google` a protocol and a service, `NetBIOS.SMBv1` two protocols."""
    names = {**{each.title.upper(): each for each in Protocol}, **NDPI}
    return {names.get(part) for part in name.upper().split(".")}


def ends(version: int, number: int, one: tuple[str, int], other: tuple[str, int]) -> tuple[Any, ...]:
    return (version, number, *sorted([one, other]))


def flow_labels(path: Path, side: str) -> dict[tuple[Any, ...], tuple[Protocol, How]]:
    """Ours, by both ends of the flow."""
    with open_capture(path) as capture:
        index = capture.index
        packets: Packets = dissect(capture.blob, index.offset, index.captured, index.link, index.wire)
        headers: Headers = getattr(packets, side)
        keys = FlowKeys.of(packets, KeyChoice(side), slice(None))  # type: ignore[arg-type]
        labels = label(capture.blob, index.offset, headers).of_flows(keys)
    _, rows = np.unique(keys.words, axis=1, return_index=True)
    found = {}
    for row in rows.tolist():
        version = int(headers.version[row])
        if version:
            one, other = (
                (
                    truth._address(
                        version, int(getattr(headers, f"{end}_high")[row]), int(getattr(headers, f"{end}_low")[row])
                    ),
                    int(port[row]),
                )
                for end, port in (("src", headers.sport), ("dst", headers.dport))
            )
            found[ends(version, int(headers.protocol[row]), one, other)] = (
                Protocol(int(labels.protocol[row])),
                How(int(labels.how[row])),
            )
    return found


def opinions() -> Counter[tuple[str, str, str, str]]:
    """How many flows of all captures agree, differ or are unknown, with both names, and how ours was found."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for path in truth.captures():
        theirs = ndpi_labels(path)
        if not theirs:
            continue
        inner, outer = flow_labels(path, "inner"), flow_labels(path, "outer")
        for row in theirs:
            if row["guessed"] != "0" or row["confidence"] != "6":
                continue
            one, other = (row["src_ip"], int(row["src_port"])), (row["dst_ip"], int(row["dst_port"]))
            key = ends(int(row["ip_version"]), int(row["proto"]), one, other)
            ours, how = inner.get(key) or outer.get(key) or (None, How.NONE)
            if ours is None:
                said = "not found"
            elif ours == Protocol.UNKNOWN:
                said = "unknown"
            else:
                said = "agree" if ours in ndpi_protocols(row["label"]) else "differ"
            counts[said, "" if ours is None else ours.title, row["label"], how.name] += 1
    return counts


@pytest.mark.skipif(not truth.captures(), reason=f"no captures in {truth.PACKETS}: set PACKET_TEST_DATA")
def test_ndpi_is_rarely_of_another_opinion() -> None:
    """docs/packets.md tells these figures."""
    said: Counter[str] = Counter()
    for (word, _, _, _), flows in opinions().items():
        said[word] += flows
    assert said == {"agree": 2004, "unknown": 1057, "not found": 4}
