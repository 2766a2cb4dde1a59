"""Whatever holds packets becomes columns, and what is asked of whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aikoryu.agents.frames import batches
from aikoryu.agents.packets import key_columns
from aikoryu.agents.rules import _cut
from aikoryu.bus.errors import BadColumn
from aikoryu.netio.capture import open_capture
from aikoryu.netio.errors import BadCapture
from aikoryu.netio.keys import Keys
from aikoryu.netio.packet_index import DTYPES, NO_LINK, PacketIndex
from aikoryu.netio.writer import write_pcapng

FRAMES = [b"one", b"", b"three"]


def capture(path: Path, links: list[int], wire: list[int]) -> Path:
    sizes = np.array([len(frame) for frame in FRAMES])
    columns: dict[str, Any] = {
        "offset": np.cumsum(sizes) - sizes,
        "captured": sizes,
        "wire": wire,
        "time_ns": np.arange(3),
        "timed": np.ones(3),
        "link": links,
        "interface": np.zeros(3),
    }
    index = PacketIndex(**{name: np.array(column).astype(DTYPES[name]) for name, column in columns.items()})
    with path.open("wb") as file:
        write_pcapng(file, np.frombuffer(b"".join(FRAMES), np.uint8), index)
    return path


def joined(source: Any, link: int = 1) -> dict[str, list[Any]]:
    """All batches of a source, as lists."""
    found: dict[str, list[Any]] = {}
    for part in batches(source, link):
        for name, values in part.items():
            found.setdefault(name, []).extend(values.tolist() if isinstance(values, np.ndarray) else values)
    return found


def test_captures_say_what_is_not_usual(tmp_path: Path) -> None:
    plain = capture(tmp_path / "plain", [1, 1, 1], [3, 0, 5])
    assert joined(plain) == joined(str(plain)) == {"frame": FRAMES}
    other = capture(tmp_path / "other", [1, 101, 101], [3, 9, 5])
    assert joined(other) == {"frame": FRAMES, "link": [1, 101, 101], "wire": [3, 9, 5]}
    with open_capture(other) as opened:
        assert joined(opened) == joined(other)
    with pytest.raises(BadCapture):
        joined(__file__)


def test_bytes_of_whatever_kind() -> None:
    given = [b"one", bytearray(), memoryview(b"three")]
    assert joined(given) == {"frame": FRAMES}
    assert joined(tuple(FRAMES), link=101) == {"frame": FRAMES, "link": [101] * 3}
    assert joined([]) == {}


@pytest.mark.parametrize("given", [[1, 2], ["text"], 7, [None], object()])
def test_what_holds_no_packets_is_refused(given: Any) -> None:
    with pytest.raises(BadColumn, match="holds no packets: give bytes of packets"):
        joined(given)


def test_many_packets_come_in_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aikoryu.agents.frames.BATCH_PACKETS", 2)
    path = capture(tmp_path / "x", [101] * 3, [3, 0, 5])
    for source in (path, FRAMES):
        parts = list(batches(source, 101))
        assert [len(part["frame"]) for part in parts] == [2, 1]
        assert [part["link"].tolist() for part in parts] == [[101, 101], [101]]  # type: ignore[union-attr]


def test_packets_of_scapy() -> None:
    scapy = pytest.importorskip("scapy.all", reason="needs the extra `net`")
    inside = scapy.IP(dst="192.0.2.1") / scapy.UDP()
    given = [scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / inside, inside, scapy.UDP()]
    given[0].wirelen = 1000
    found = joined(given)
    assert found == {
        "frame": [bytes(packet) for packet in given],
        "link": [1, 228, NO_LINK],
        "wire": [1000, 28, 8],
    }
    assert joined(scapy.PacketList(given)) == found


def test_columns_of_arrow() -> None:
    arrow = pytest.importorskip("pyarrow")
    assert joined(arrow.array(FRAMES)) == joined(arrow.chunked_array([FRAMES[:1], FRAMES[1:]])) == {"frame": FRAMES}
    table = arrow.table({"frame": FRAMES, "wire": [3, 9, 5], "note": ["a", "b", "c"]})
    for given in (table, table.to_batches()[0]):
        assert joined(given, 101) == {"frame": FRAMES, "wire": [3, 9, 5], "link": [101] * 3}
    with pytest.raises(BadColumn, match="columns note: call that of the packets `frame`"):
        joined(table.select(["note"]))


FIVE = [1, 2], [3, 4], [5, 6], [7, 8], [6, 17]


def test_keys_of_ipv4_are_thirteen_bytes() -> None:
    columns = key_columns(Keys.ipv4(*FIVE))
    assert {name: (values.dtype.name, values.tolist()) for name, values in columns.items()} == {  # type: ignore[union-attr]
        "source": ("uint32", [1, 2]),
        "destination": ("uint32", [3, 4]),
        "source_port": ("uint16", [5, 6]),
        "destination_port": ("uint16", [7, 8]),
        "protocol": ("uint8", [6, 17]),
    }


def test_keys_say_what_is_not_usual() -> None:
    four = Keys.ipv4(*FIVE)
    six = Keys.ipv6([(1, 2), (3, 4)], [(5, 6), (7, 8)], *FIVE[2:])
    assert key_columns(six)["source"].tolist() == [[1, 2], [3, 4]]  # type: ignore[union-attr]
    assert "version" not in key_columns(six)
    both = Keys(**{name: np.concatenate([getattr(four, name), getattr(six, name)]) for name in vars(four)})
    assert key_columns(both)["version"].tolist() == [4, 4, 6, 6]  # type: ignore[union-attr]
    assert key_columns(both)["source"].tolist() == [[0, 1], [0, 2], [1, 2], [3, 4]]  # type: ignore[union-attr]
    four.vlan[1], four.tcp_flags[0] = 5, 2
    assert {"vlan", "tcp_flags"} <= set(key_columns(four))
    assert not {"vlan", "tcp_flags"} & set(key_columns(four, flow=True))


@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_texts_are_cut_at_ends_of_lines(size: int) -> None:
    for text in ("", "a", "\n", "ab\ncdef\n\nghij", "ab\ncd\n", "longer than any\nx\n"):
        parts = list(_cut(text, size))
        assert "".join(parts) == text
        assert all(part.endswith("\n") for part in parts[:-1])
        assert all(len(part) <= size or part.count("\n") <= 1 for part in parts)
        assert parts == [""] or all(parts)
