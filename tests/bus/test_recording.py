"""Recordings as files: what was written is read, wherever the file was cut."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest

from aikoryu.bus.exchange import Exchange
from aikoryu.bus.recording import (
    MAGIC,
    VERSION,
    BadRecording,
    Ended,
    Recording,
    RecordingFull,
    RecordingWriter,
    is_recording,
    read,
)

MOST = 1 << 20
ROOT = "aikoryu.v1.default"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "night.rec"


def written(path: Path, most_bytes: int = MOST) -> RecordingWriter:
    return RecordingWriter(path, ROOT, ("matrix.>",), 5, most_bytes)


def filled(path: Path) -> list[int]:
    """Three requests, the second answered in two parts, the third not; where each record ends."""
    ends = []
    with written(path) as writer:
        ends.append(writer.bytes)
        for step in (
            lambda: writer.asked(10, "matrix.add", b"one"),
            lambda: writer.asked(20, "echo", b"two"),
            lambda: writer.answered(1, 30, b"second, first part"),
            lambda: writer.answered(0, 40, b"first"),
            lambda: writer.asked(50, "matrix.add", b"three"),
            lambda: writer.answered(1, 60, b"second, second part"),
            lambda: writer.end(70, {"gaps": 1}),
        ):
            step()
            ends.append(writer.bytes)
    return ends


EXCHANGES = [
    Exchange(0, 10, "matrix.add", b"one", ((40, b"first"),)),
    Exchange(1, 20, "echo", b"two", ((30, b"second, first part"), (60, b"second, second part"))),
    Exchange(2, 50, "matrix.add", b"three", ()),
]


async def test_what_was_written_is_read(path: Path) -> None:
    filled(path)
    assert [exchange async for exchange in read(path)] == EXCHANGES
    recording = Recording(path)
    assert (recording.began.root, recording.began.patterns, recording.began.time_ns) == (ROOT, ("matrix.>",), 5)
    assert (recording.ended, recording.truncated) == (Ended(70, {"gaps": 1}), False)
    assert [recording.names[each] for each in recording.operations] == ["matrix.add", "echo", "matrix.add"]
    assert (recording.times_ns.tolist(), recording.sizes.tolist()) == ([10, 20, 50], [3, 3, 5])


def test_answers_stay_in_the_order_in_which_they_came(path: Path) -> None:
    with written(path) as writer:
        for number in range(4):
            writer.asked(number, "echo", b"")
        for time_ns in range(400):
            writer.answered(time_ns * 7 % 4, time_ns, b"")
    recording = Recording(path)
    for number in range(4):
        times = [time_ns for time_ns, _ in recording.exchange(number).answers]
        assert times == [time_ns for time_ns in range(400) if time_ns * 7 % 4 == number]


def test_a_recording_cut_anywhere_gives_what_is_whole(path: Path, tmp_path: Path) -> None:
    ends = filled(path)
    blob = path.read_bytes()
    cut = tmp_path / "cut.rec"
    for size in range(ends[0], len(blob)):
        cut.write_bytes(blob[:size])
        recording = Recording(cut)
        whole = sum(end <= size for end in ends) - 1
        assert recording.truncated == (size not in ends)
        assert recording.ended is None
        asked = [1, 2, 2, 2, 3, 3][whole - 1] if whole else 0
        answers = [0, 0, 1, 2, 2, 3][whole - 1] if whole else 0
        got = [recording.exchange(number) for number in range(len(recording))]
        assert [each.request for each in got] == [each.request for each in EXCHANGES[:asked]]
        assert sum(len(each.answers) for each in got) == answers


def test_a_byte_that_was_changed_ends_it(path: Path) -> None:
    ends = filled(path)
    blob = bytearray(path.read_bytes())
    blob[ends[2] - 1] ^= 1
    path.write_bytes(blob)
    recording = Recording(path)
    assert (len(recording), recording.truncated) == (1, True)


@pytest.mark.parametrize("record", [["answered", 7, 1, b""], ["asked", 3, 1, "echo", b""], ["other"], 5])
def test_a_record_that_makes_no_sense_ends_it(path: Path, record: object) -> None:
    filled(path)
    body = msgspec.msgpack.encode(record)
    with path.open("ab") as file:
        file.write(len(body).to_bytes(4, "little") + crc32(body).to_bytes(4, "little") + body)
    recording = Recording(path)
    assert [recording.exchange(number) for number in range(3)] == EXCHANGES
    assert recording.truncated == (record != ["asked", 3, 1, "echo", b""])


@pytest.mark.parametrize("blob", [b"", b"\xd4\xc3\xb2\xa1", MAGIC[:-1]])
def test_another_file_is_none(path: Path, blob: bytes) -> None:
    path.write_bytes(blob)
    assert not is_recording(path)
    with pytest.raises(BadRecording, match="aikoryu record"):
        Recording(path)


def test_a_file_cut_in_its_first_record_is_told(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[: len(MAGIC) + 9])
    assert is_recording(path)
    with pytest.raises(BadRecording, match="cut within its first record"):
        Recording(path)
    path.write_bytes(MAGIC)
    with pytest.raises(BadRecording, match="cut within its first record"):
        Recording(path)


def test_another_version_is_told(path: Path) -> None:
    body = msgspec.msgpack.encode(["recording", VERSION + 1, "root", [], 0])
    path.write_bytes(MAGIC + len(body).to_bytes(4, "little") + crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(BadRecording, match="version 2, 1 is known here"):
        Recording(path)


def test_it_does_not_grow_beyond_its_size(path: Path) -> None:
    with written(path, 200) as writer:
        while True:
            try:
                writer.asked(1, "echo", bytes(20))
            except RecordingFull:
                break
        assert 150 < writer.bytes <= 200
        writer.end(2, {})
    recording = Recording(path)
    assert (len(recording), recording.truncated, recording.ended) == (writer.requests, False, Ended(2, {}))


def test_a_disk_that_is_full_leaves_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file that takes three bytes more."""

        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, record: bytes) -> int:
            if len(record) > 3:
                return int(self.file.write(record[:3]))  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with written(path) as writer:
        writer.asked(1, "echo", b"kept")
        size = writer.bytes
        monkeypatch.setattr(writer, "_file", Full(writer._file))
        with pytest.raises(OSError, match="No space"):
            writer.asked(2, "echo", b"lost")
        assert path.stat().st_size == writer.bytes == size
    assert len(Recording(path)) == 1


def test_a_file_that_is_there_is_not_written_over(path: Path) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        written(path)
    assert path.read_bytes() == b"mine"


def test_the_reader_of_the_document_reads_it(path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "replay.md").read_text("utf-8")
    (source,) = re.findall(r"```python\n(import struct.*?)```", document, re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    filled(path)
    kinds = ["recording", "asked", "asked", "answered", "answered", "asked", "answered", "ended"]
    found = list(names["records"](path))
    assert [record[0] for record in found] == kinds
    assert found[:2] == [["recording", 1, ROOT, ["matrix.>"], 5], ["asked", 0, 10, "matrix.add", b"one"]]
    assert found[-1] == ["ended", 70, {"gaps": 1}]
    path.write_bytes(path.read_bytes()[:-1])
    assert [record[0] for record in names["records"](path)] == kinds[:-1]
