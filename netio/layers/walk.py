"""A block of packets on the way through their headers."""

from __future__ import annotations

from typing import Any, TypeAlias

from ..packet_index import Array
from ..packets import HEADER_DTYPES, Error
from ..window import Window, window
from .kinds import Kind, Tables

Rows: TypeAlias = "Array | slice"
"""Row numbers of the packets at hand; a slice when that is all of the block, which spares copies."""

MAX_IP_HEADERS = 16
MAX_TAGS = 32

# What a second IP header must not take over from the first, because not every header fills it.
PARTIAL_COLUMNS = (
    "src_high",
    "dst_high",
    "identification",
    "dont_fragment",
    "more_fragments",
    "fragment_offset",
    "sport",
    "dport",
    "seq",
    "ack",
    "window",
    "tcp_flags",
    "tcp_header_length",
    "icmp_type",
    "icmp_code",
)


class Walk:
    """Where each packet of a block stands, and the columns that its headers fill.

    Args:
        blob: (m,) uint8, in which all packets lie.
        at: (n,) int64, first byte of each packet.
        end: (n,) int64, the byte after its last in the capture.
        limit: (n,) int64, the same on the wire: `end` or more.
        kind: (n,) uint8, the `Kind` of its first header.
        columns: by name, the columns of `Packets` and of its `Headers`, (n,) each.
        tables: what leads from header to header.
        xp: the array namespace.

    Attributes:
        at: where the next header begins.
        end: how far the packet may be read.
        limit: how far it went on the wire.
        kind: what its next header is.
        fragment: more fragments follow, so that lengths inside say more than is there.
        first: nothing but first headers was read so far.
        outer: what the first IP header said, kept when a second is read: row numbers, and columns by name.
    """

    def __init__(
        self,
        blob: Array,
        at: Array,
        end: Array,
        limit: Array,
        kind: Array,
        columns: dict[str, Array],
        tables: Tables,
        xp: Any,
    ) -> None:
        self.at = at
        self.end = end
        self.limit = limit
        self.kind = kind
        self.columns = columns
        self.tables = tables
        self.xp = xp
        self.fragment = xp.zeros(len(at), bool)
        self.first = True
        self.outer: list[tuple[Array, dict[str, Array]]] = []
        self._blob = blob
        self._start = at.copy()
        self._tags = xp.zeros(len(at), xp.uint8)
        # Where the payload of the header that carries a tunnel lies, and the tunnel; 0 = none was entered.
        self._entered: dict[str, Array] = {}

    def read(self, rows: Rows, size: int, least: int | None = None) -> tuple[Rows, Array, Window, Array | None]:
        """Reads `size` bytes of the header at hand.

        Packets with fewer bytes are done, with an error; those with at least `least` bytes are among the answer
        nevertheless, with 0 for what is missing.

        Returns:
            The rows, where their headers begin, the bytes, and which of them are whole, or None where all are.
        """
        # A copy of a slice too: the walk goes on while the caller still counts from here.
        at = self.at.copy() if isinstance(rows, slice) else self.at[rows]
        have = self.end[rows] - at
        short = have < size
        if not short.any():
            return rows, at, window(self._blob, at, size, self.xp), None
        numbers = self.numbers(rows)
        self._fail_short(numbers[short], size)
        keep = have >= (size if least is None else least)
        numbers, at, have = numbers[keep], at[keep], have[keep]
        bytes_ = window(self._blob, at, size, self.xp)
        if least is None:
            return numbers, at, bytes_, None
        return numbers, at, bytes_.masked(have), have >= size

    def peek(self, rows: Rows, ahead: Any, size: int) -> Window:
        """The `size` bytes that lie `ahead` of the header at hand, 0 where the packet has ended; never an error."""
        at = self.at[rows] + ahead
        return window(self._blob, at, size, self.xp).masked(self.end[rows] - at)

    def go(self, rows: Rows, at: Array, kind: Any) -> None:
        """The next header begins at `at` and is of `kind`."""
        self.at[rows] = at
        self.kind[rows] = kind

    def fail(self, rows: Array, error: Any) -> None:
        """Packets that cannot be followed any further."""
        self.note(rows, error)
        self.kind[rows] = Kind.DONE

    def note(self, rows: Array, error: Any) -> None:
        """Something is wrong with these packets; an earlier error stays."""
        errors = self.columns["error"]
        before = errors[rows]
        errors[rows] = self.xp.where(before == Error.NONE, error, before)

    def put(self, rows: Rows, **values: Any) -> None:
        """Fills columns."""
        for name, value in values.items():
            self.columns[name][rows] = value

    def numbers(self, rows: Rows) -> Array:
        """Row numbers, of a slice too."""
        if isinstance(rows, slice):
            every: Array = self.xp.arange(len(self.at))
            return every
        return rows

    def tag(self, rows: Rows) -> Rows:
        """Counts a header that can come again and again. Returns the rows that have not had too many; others fail."""
        self._tags[rows] += 1
        return self._fewer(rows, self._tags[rows] > MAX_TAGS)

    def count_ip(self, rows: Rows) -> Rows:
        """The rows that have not had too many IP headers; others fail."""
        return self._fewer(rows, self.columns["ip_headers"][rows] >= MAX_IP_HEADERS)

    def shorten(self, rows: Rows, limit: Array) -> None:
        """The packets end at `limit`, as a length in a header says; one that says too much is noted."""
        before = self.limit[rows]
        over = limit > before
        if over.any():
            self.note(self.numbers(rows)[over & ~self.fragment[rows]], Error.BAD_LENGTH)
            limit = self.xp.minimum(limit, before)
        self.limit[rows] = limit
        self.end[rows] = self.xp.minimum(self.end[rows], limit)

    def enter(self, rows: Rows, tunnel: int, tunnel_id: Any = 0) -> None:
        """A tunnel begins at the header at hand: what is there is the payload of the last IP header."""
        if not self._entered:
            names = ("at", "end", "limit", "tunnel", "tunnel_id")
            self._entered = {name: self.xp.zeros(len(self.at), self.xp.int64) for name in names}
        entered = self._entered
        entered["at"][rows] = self.at[rows]
        entered["end"][rows] = self.end[rows]
        entered["limit"][rows] = self.limit[rows]
        entered["tunnel"][rows] = tunnel
        entered["tunnel_id"][rows] = tunnel_id

    def leave_outer(self, rows: Rows, tunnel: int) -> None:
        """Keeps what a first IP header said, before a second one is read; `tunnel` is meant where none was entered."""
        headers = self.columns["ip_headers"][rows]
        if not headers.any():
            self.columns["ip_headers"][rows] = 1
            return
        numbers = self.numbers(rows)
        headers = headers.copy()
        self.columns["ip_headers"][rows] = headers + 1
        second = numbers[headers == 1]
        if len(second):
            bare = second[self._entered["tunnel"][second] == 0] if self._entered else second
            self.enter(bare, tunnel)
            entered = self._entered
            kept = {name: self.columns[name][second] for name in HEADER_DTYPES}
            kept |= self._payload(second, entered["at"][second], entered["end"][second], entered["limit"][second])
            self.outer.append((second, kept))
            self.put(second, tunnel=entered["tunnel"][second], tunnel_id=entered["tunnel_id"][second])
        for name in PARTIAL_COLUMNS:
            self.columns[name][numbers[headers > 0]] = 0

    def finish(self) -> None:
        """What lies behind the last header of each packet is its payload."""
        every = slice(None)
        self.put(every, **self._payload(every, self.at, self.end, self.limit))

    def _fewer(self, rows: Rows, over: Array) -> Rows:
        if not over.any():
            return rows
        numbers = self.numbers(rows)
        self.fail(numbers[over], Error.LOOP_LIMIT)
        fewer: Array = numbers[~over]
        return fewer

    def _payload(self, rows: Rows, at: Array, end: Array, limit: Array) -> dict[str, Array]:
        at = self.xp.minimum(at, limit)
        return {
            "payload_offset": at - self._start[rows],
            "payload_wire": limit - at,
            "payload_captured": self.xp.maximum(end - at, 0),
        }

    def _fail_short(self, rows: Array, size: int) -> None:
        beyond = (self.at[rows] + size > self.limit[rows]) & ~self.fragment[rows]
        self.fail(rows, self.xp.where(beyond, Error.BAD_LENGTH, Error.TRUNCATED))
