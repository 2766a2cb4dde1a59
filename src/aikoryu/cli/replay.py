"""`aikoryu replay`: a recording of the bus, or the packets of a capture, sent again."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import uvloop

from ..agents import connect
from ..agents.replay import DIFFERENCES, RecordedFrames, Replay, packet_frames, stateful_operations
from ..agents.replay_report import Report
from ..bus.differences import Tolerance
from ..bus.exchange import TRANSIENT
from ..bus.recording import Recording, is_recording
from ..bus.subjects import Subjects
from ..config import Settings, configure_logging
from ..netio.capture_frames import CaptureFrames
from ..netio.pacing import Plan, Speed, Unit
from .arguments import Commands, add_command, add_settings, settings_of
from .captures import opened
from .failure import Failed
from .progress import Progress, say
from .stopping import stopping
from .table import table
from .values import value_of

LOOK_S = 0.2
MOST_TOGETHER = 256  # packets of a capture that share a frame

_DESCRIPTION = """\
Send what `aikoryu record` wrote again, to whoever serves it now, and tell how
fast it was answered. With --verify answers are compared with those recorded,
and the exit status is 1 if one differs: integers, text, bytes and error codes
exactly, floats within a tolerance by type that --rtol and --atol replace.

  aikoryu replay night.rec --speed max --verify
  aikoryu replay night.rec --speed 10x --loop 3
  aikoryu replay night.rec --speed frames=500/s --duration 60

What changes, or needs, what a worker keeps (matrix.put, and whatever is not
pure) is left out unless --stateful is given.

Of a capture, pcap or pcapng, the packets are sent to one operation. Speeds
count packets then.

  aikoryu replay trace.pcap --operation packets.dissect --speed 1x
  aikoryu replay trace.pcap --operation packets.dissect --speed pps=100000 \\
    --loop 5 --unique-addresses

docs/replay.md has the whole of it."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "replay", "send a recording or a capture again, compare answers", _DESCRIPTION)
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording, or a capture")
    pace = parser.add_argument_group("pace")
    pace.add_argument(
        "--speed",
        type=_speed,
        default=Speed(Unit.TIMES),
        metavar="SPEED",
        help="1x (as recorded, the default), 10x, frames=1000/s, pps=1000, mbit=100, max",
    )
    pace.add_argument("--loop", type=_count, default=1, metavar="N", help="times (default: 1); 0 = until Ctrl-C")
    pace.add_argument("--delay", type=_amount, default=0.0, metavar="S", help="rest between two loops, in s")
    pace.add_argument("--limit", type=_count, default=0, metavar="N", help="requests, or packets, at most")
    pace.add_argument("--duration", type=_amount, default=0.0, metavar="S", help="send no longer than this, in s")
    verify = parser.add_argument_group("of a recording")
    verify.add_argument("--verify", action="store_true", help="compare answers with those recorded")
    verify.add_argument("--rtol", type=_amount, metavar="X", help="floats may differ by X times the recorded one")
    verify.add_argument("--atol", type=_amount, metavar="X", help="floats may differ by X")
    verify.add_argument(
        "--differences", type=_count, default=DIFFERENCES, metavar="N", help=f"list so many (default: {DIFFERENCES})"
    )
    verify.add_argument("--stateful", action="store_true", help="send what changes or needs a worker's state, too")
    packets = parser.add_argument_group("of a capture")
    packets.add_argument("--operation", metavar="NAME", help="what the packets are sent to, packets.dissect")
    packets.add_argument(
        "-p", action="append", default=[], type=_pair, dest="parameters", metavar="NAME=JSON", help="its parameters"
    )
    packets.add_argument("--unique-addresses", action="store_true", help="other IP addresses in each loop: new flows")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replay, and tell what came of it; 1 if answers differ, or something was not answered."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    try:
        recorded = is_recording(options.file)
    except OSError as error:
        raise Failed(f"{options.file} cannot be read: {error.strerror}") from None
    _check(options, recorded, Subjects(settings.bus.prefix, settings.bus.namespace))
    report = uvloop.run(_replay_recording(options, settings) if recorded else _replay_capture(options, settings))
    if options.json:
        print(json.dumps(report.plain()))
    else:
        _tell(report, options)
    return _status(report, options.verify)


def _check(options: argparse.Namespace, recorded: bool, subjects: Subjects) -> None:
    """Refuse what makes no sense together."""
    if recorded and (options.operation or options.parameters or options.unique_addresses):
        raise Failed(f"{options.file} is a recording: --operation, -p and --unique-addresses are for captures")
    if not recorded and (options.verify or options.stateful):
        raise Failed(f"{options.file} is no recording: --verify and --stateful need one, of `aikoryu record`")
    if not recorded and not options.operation:
        raise Failed(f"{options.file} is no recording; of a capture say what takes it: --operation packets.dissect")
    if f"{options.operation}.".startswith("packets.flows."):
        raise Failed(f"packets.flows takes chunks, not packets: aikoryu packets flows {options.file} --nats URL")
    if not options.verify and (options.rtol, options.atol) != (None, None):
        raise Failed("--rtol and --atol say how --verify compares: give it too")
    if options.operation:
        try:
            subjects.operation(options.operation)
        except ValueError as error:
            raise Failed(str(error)) from None


async def _replay_recording(options: argparse.Namespace, settings: Settings) -> Report:
    recording = Recording(options.file)
    if recording.truncated:
        say(f"{options.file} was cut, or is damaged: this is what comes before, {len(recording):,} requests")
    async with connect(settings=settings) as bus:
        skipped = frozenset[str]() if options.stateful else await stateful_operations(bus)
        source = RecordedFrames(recording, skipped)
        verify = Tolerance(options.rtol, options.atol) if options.verify else None
        replaying = Replay(bus.client, source, _plan(options), verify, options.differences)
        return await _watched(replaying, len(source.times_ns) * options.loop, "requests")


async def _replay_capture(options: argparse.Namespace, settings: Settings) -> Report:
    parameters = {name: value_of(text) for name, text in options.parameters}
    with opened(options.file) as capture:
        packets = CaptureFrames(capture, unique_addresses=options.unique_addresses)
        if capture.truncated:
            say(f"{options.file} ends inside a packet, or is damaged: this is what comes before")
        async with connect(settings=settings) as bus:
            source = packet_frames(bus, packets, options.operation, parameters)
            replaying = Replay(bus.client, source, _plan(options, MOST_TOGETHER))
            return await _watched(replaying, len(packets) * options.loop, "packets")


def _plan(options: argparse.Namespace, most: int = Plan().most) -> Plan:
    return Plan(options.speed, options.loop, options.delay, options.limit, options.duration, most)


async def _watched(replaying: Replay, items: int, what: str) -> Report:
    """Run a replay, tell how far it is, and let a first Ctrl-C end its sending."""
    progress = Progress()
    running = asyncio.create_task(replaying.run())
    try:
        with stopping() as stop:
            stop.drains = True
            while not running.done():
                await asyncio.wait({running}, timeout=LOOK_S)
                if stop.asked.is_set():
                    replaying.stop()
                paced = replaying.report.paced
                progress.show(f"{paced.sent:,}{f' of {items:,}' if items else ''} {what}, {paced.items_s:,.0f}/s")
            return running.result()
    finally:
        running.cancel()
        await asyncio.wait({running})
        progress.close()


def _status(report: Report, verified: bool) -> int:
    """1 if an answer differs, none could be compared, or something had no answer at all."""
    if verified and (report.differing or not report.compared):
        return 1
    return int(any(code in TRANSIENT for code in report.errors))


def _tell(report: Report, options: argparse.Namespace) -> None:
    if report.operations:
        print(_operations(report, options.verify))
    paced, seconds = report.paced, report.seconds or 1.0
    print(
        f"{paced.sent:,} {'packets' if options.operation else 'requests'}, {report.rows:,} rows in "
        f"{report.seconds:,.2f} s: {paced.sent / seconds:,.0f}/s, {report.rows / seconds:,.0f} rows/s, "
        f"{paced.bits / seconds / 1e6:,.1f} Mbit/s"
    )
    if paced.late:
        print(
            f"late: {paced.late:,} by more than 1 ms, at most by {paced.worst_ns / 1e6:,.1f} ms, the last one by "
            f"{paced.last_ns / 1e6:,.1f} ms"
        )
    if paced.unsent:
        print(f"not sent: {paced.unsent:,} that were due before the end")
    if report.skipped:
        skipped = ", ".join(f"{name} ({count:,})" for name, count in sorted(report.skipped.items()))
        print(f"left out, because they change or need what a worker keeps: {skipped}; --stateful sends them")
    for code, rows in report.errors.most_common():
        print(f"error {code}: {rows:,} rows")
    if options.verify:
        _tell_verified(report)


def _operations(report: Report, verified: bool) -> str:
    heading = ["OPERATION", "REQUESTS", "ROWS", "ERRORS", "P50 MS", "P90 MS", "P99 MS", "MAX MS"]
    lines = [heading + ["COMPARED", "DIFFER"] * verified]
    for name, tally in sorted(report.operations.items()):
        times_s = [*map(tally.latencies.quantile_s, (0.5, 0.9, 0.99)), tally.latencies.longest_ns / 1e9]
        line = [name, *(f"{count:,}" for count in (tally.frames, tally.rows, tally.errors.total()))]
        line += [f"{1000 * time_s:,.2f}" if tally.answered else "-" for time_s in times_s]
        lines.append(line + [f"{tally.compared:,}", f"{tally.differing:,}"] * verified)
    return table(lines, "<" + ">" * (len(lines[0]) - 1))


def _tell_verified(report: Report) -> None:
    untold = sum(tally.untold for tally in report.operations.values())
    print(f"verified: {report.compared:,} rows compared, {report.differing:,} differ")
    if untold:
        print(f"not compared: {untold:,} rows to which the recording has no answer")
    for difference in report.differences:
        print(f"  {difference}")
    listed = len({(difference.number, difference.row) for difference in report.differences})
    if report.differing > listed:
        print("  and more: --differences lists them")


def _speed(text: str) -> Speed:
    try:
        return Speed.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below 0, or no number")
    return value


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=JSON: write columns='[\"error\"]'")
    return name, value
