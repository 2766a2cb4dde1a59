"""`aikoryu record`: what is asked on a bus and what is answered, to a file."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path

import uvloop

from ..agents import open_transport
from ..bus.recorder import AGAIN, GAPS, STREAMS, UNANSWERED, UNREADABLE, Recorder, check_pattern, steady_clock
from ..bus.recording import RecordingFull, RecordingWriter
from ..bus.subjects import Subjects
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .progress import Progress, say
from .stopping import Stop, stopping

MIB = 2**20
LOOK_S = 0.25

_DESCRIPTION = """\
Write down what is asked of operations and what is answered, until Ctrl-C, so
that it can be sent again: `aikoryu replay`. A process that is killed leaves all
that it has heard in the file.

  aikoryu record night.rec --subjects 'matrix.>' 'models.>'
  aikoryu record night.rec --subjects echo --seconds 60

On a server with users it needs one of its own: `aikoryu auth init --recorder`
makes it, and prints its settings. docs/replay.md says what recording costs, and
what callers and workers are not told while it lasts."""

_TOLD = {
    UNANSWERED: "requests have no answer, or not all of it",
    AGAIN: "requests were sent more than once; they are there once",
    STREAMS: "streams were opened, which are not recorded",
    UNREADABLE: "messages were no requests",
    GAPS: "times the connection was lost; what was said meanwhile is not there",
}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "record", "write down what is asked and answered", _DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="where to; it must not be there yet")
    parser.add_argument(
        "--subjects", nargs="+", required=True, metavar="PATTERN", help="operations: echo, matrix.>, or > for all"
    )
    parser.add_argument("--seconds", type=_positive, metavar="S", help="how long (default: until Ctrl-C)")
    parser.add_argument(
        "--max-mib", type=_positive, default=1024.0, metavar="N", help="largest size of the file (default: 1024)"
    )
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Record, and say what is in the file."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
    for pattern in options.subjects:
        check_pattern(subjects, pattern)
    try:
        uvloop.run(_record(options, settings, subjects))
    except FileExistsError:
        raise Failed(f"{options.file} is there already: name another file, or remove it") from None
    except OSError as error:
        raise Failed(f"{options.file} cannot be written: {error.strerror}") from None
    return 0


async def _record(options: argparse.Namespace, settings: Settings, subjects: Subjects) -> None:
    clock, loop = steady_clock(), asyncio.get_running_loop()
    transport = await open_transport(settings)
    try:
        patterns, most_bytes = tuple(options.subjects), int(options.max_mib * MIB)
        with RecordingWriter(options.file, subjects.root, patterns, clock(), most_bytes) as writer:
            recorder = Recorder(transport, subjects, writer, patterns, settings.bus.reply_prefixes, clock)
            try:
                await recorder.start()
            except BaseException:
                options.file.unlink()
                raise
            began = loop.time()
            with stopping() as stop:
                stop.drains = True
                say(f"Recording {' '.join(patterns)} of {settings.nats.url}; Ctrl-C ends it.")
                await _until_over(recorder, writer, stop, None if options.seconds is None else began + options.seconds)
                await recorder.stop()
            _tell(options.file, writer, recorder, loop.time() - began)
            if isinstance(recorder.failure, OSError):
                raise recorder.failure
    finally:
        await transport.close()


async def _until_over(recorder: Recorder, writer: RecordingWriter, stop: Stop, end: float | None) -> None:
    """Return when a signal asks for it, the time has passed, or the file takes no more; tell meanwhile how it goes."""
    loop, progress = asyncio.get_running_loop(), Progress()
    try:
        while not (stop.asked.is_set() or recorder.over.is_set() or (end is not None and loop.time() >= end)):
            progress.show(f"{writer.requests:,} requests, {writer.answers:,} answers, {writer.bytes / MIB:,.1f} MiB")
            left_s = LOOK_S if end is None else min(LOOK_S, end - loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await stop.asked.wait()
    finally:
        progress.close()


def _tell(path: Path, writer: RecordingWriter, recorder: Recorder, seconds: float) -> None:
    print(
        f"{path}: {writer.requests:,} requests and {writer.answers:,} answers, {writer.bytes / MIB:,.1f} MiB "
        f"in {seconds:,.1f} s"
    )
    for what, count in recorder.counts.items():
        if count:
            print(f"  {count:,} {_TOLD[what]}")
    if isinstance(recorder.failure, RecordingFull):
        print("  the file is full: --max-mib lets it grow")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
