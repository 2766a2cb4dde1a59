"""Flows as lines of Zeek's conn.log, tab-separated or JSON.

Source:
    Zeek's documentation of conn.log: the fields of base/protocols/conn/main.zeek, of its policies for Community ID and
    VLANs, and the ASCII writer's header lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Literal, TextIO

import numpy as np

from .address_text import address_texts
from .community_id import community_ids
from .flows import Flows
from .packet_index import Array
from .packets import NO_VLAN
from .tcp_state import ConnState
from .tuples import mixed

FIELDS = {
    "ts": "time",
    "uid": "string",
    "id.orig_h": "addr",
    "id.orig_p": "port",
    "id.resp_h": "addr",
    "id.resp_p": "port",
    "proto": "enum",
    "service": "string",
    "duration": "interval",
    "orig_bytes": "count",
    "resp_bytes": "count",
    "conn_state": "string",
    "local_orig": "bool",
    "local_resp": "bool",
    "missed_bytes": "count",
    "history": "string",
    "orig_pkts": "count",
    "orig_ip_bytes": "count",
    "resp_pkts": "count",
    "resp_ip_bytes": "count",
    "tunnel_parents": "set[string]",
    "ip_proto": "count",
    "community_id": "string",
    "vlan": "int",
    "inner_vlan": "int",
}
"""Zeek's columns and their types. `service`, `local_orig`, `local_resp`, `missed_bytes`, `tunnel_parents` are unset."""

UNSET = "-"
PROTOCOLS = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp"}
SECOND_NS, US_NS = 10**9, 1000
STATES = [state.name for state in ConnState]
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
UID_DIGITS = 17


class ConnLog:
    """A conn.log that flows are written to as they end.

    A context manager: the end writes the line `#close`, and leaves the file open, which is the caller's.

    Args:
        file: where the lines go.
        form: `tsv` with Zeek's header lines, or `json`, one object a line, without what is unset.
        clock: seconds since 1970, for `#open` and `#close`.
    """

    def __init__(
        self, file: TextIO, form: Literal["tsv", "json"] = "tsv", clock: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._is_tsv = form == "tsv"
        self._clock = clock
        if self._is_tsv:
            head = ["#separator \\x09", "#set_separator\t,", "#empty_field\t(empty)", f"#unset_field\t{UNSET}"]
            head += ["#path\tconn", f"#open\t{self._now()}"]
            head += ["\t".join(["#fields", *FIELDS]), "\t".join(["#types", *FIELDS.values()])]
            self._write(head)

    def write(self, flows: Flows) -> None:
        """Appends a line for each flow."""
        if self._is_tsv:
            self._write("\t".join(row.get(name, UNSET) for name in FIELDS) for row in _rows(flows))
        else:
            self._write(json.dumps({name: _value(name, text) for name, text in row.items()}) for row in _rows(flows))

    def close(self) -> None:
        """Writes the last line; the log is at its end then."""
        if self._is_tsv:
            self._write([f"#close\t{self._now()}"])

    def __enter__(self) -> ConnLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, lines: Iterator[str] | list[str]) -> None:
        self._file.writelines(f"{line}\n" for line in lines)

    def _now(self) -> str:
        return time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime(self._clock()))


def _rows(flows: Flows) -> Iterator[dict[str, str]]:
    """Each flow's fields, in the order of `FIELDS`, without those that are unset."""
    keys = flows.keys()
    start, end = flows.start_ns, flows.end_ns
    lasts = start < end
    columns = {
        "ts": [_seconds(value) for value in start.tolist()],
        "uid": uids(flows),
        "id.orig_h": _addresses(flows.version, flows.source_high, flows.source_low),
        "id.orig_p": keys.source_port.tolist(),
        "id.resp_h": _addresses(flows.version, flows.destination_high, flows.destination_low),
        "id.resp_p": keys.destination_port.tolist(),
        "proto": [PROTOCOLS.get(value, "unknown_transport") for value in flows.protocol.tolist()],
        # As in Zeek, a flow of one moment has no duration, and no bytes.
        "duration": [_seconds(value) if value else None for value in (end.astype("u8") - start.astype("u8")).tolist()],
        "orig_bytes": _where(lasts, flows.payload_bytes[:, 0]),
        "resp_bytes": _where(lasts, flows.payload_bytes[:, 1]),
        "conn_state": [STATES[value] for value in flows.state.tolist()],
        "history": [value or None for value in flows.history.tolist()],
        "orig_pkts": flows.packets[:, 0].tolist(),
        "orig_ip_bytes": flows.ip_bytes[:, 0].tolist(),
        "resp_pkts": flows.packets[:, 1].tolist(),
        "resp_ip_bytes": flows.ip_bytes[:, 1].tolist(),
        "ip_proto": flows.protocol.tolist(),
        "community_id": community_ids(keys).tolist(),
        "vlan": _where(flows.vlan_outer != NO_VLAN, flows.vlan_outer),
        "inner_vlan": _where(flows.vlan_inner != NO_VLAN, flows.vlan_inner),
    }
    for values in zip(*columns.values(), strict=True):
        yield {name: str(value) for name, value in zip(columns, values, strict=True) if value is not None}


def uids(flows: Flows) -> list[str]:
    """A name of each flow in Zeek's form, the same whenever the same packets are read, and silent about addresses."""
    digits = np.empty((len(flows), UID_DIGITS), np.uint64)
    base = np.uint64(len(DIGITS))
    for half in (0, 1):
        number = mixed((np.full(len(flows), half + 1, np.uint64), flows.serial, flows.start_ns.astype(np.uint64)))
        for place in range(half, UID_DIGITS, 2):
            number, digits[:, place] = number // base, number % base
    letters = np.frombuffer(DIGITS.encode(), np.uint8)[digits]
    return [f"C{text.decode()}" for text in letters.view(f"S{UID_DIGITS}")[:, 0].tolist()]


def _addresses(version: Array, high: Array, low: Array) -> list[str]:
    texts, which = address_texts(version, high, low)
    found: list[str] = texts[which].tolist()
    return found


def _where(mask: Array, values: Array) -> list[int | None]:
    return [value if said else None for said, value in zip(mask.tolist(), values.tolist(), strict=True)]


def _seconds(nanoseconds: int) -> str:
    whole, rest = divmod(abs(nanoseconds), SECOND_NS)
    return f"{'-' * (nanoseconds < 0)}{whole}.{rest // US_NS:06d}"


def _value(name: str, text: str) -> str | int | float:
    """What JSON says of a field."""
    kind = FIELDS[name]
    if kind in ("time", "interval"):
        return float(text)
    return int(text) if kind in ("port", "count", "int") else text
