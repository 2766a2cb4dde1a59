"""`aikoryu ls`: the workers on the bus, what they can be asked, and how much they were."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvloop

from ..agents import connect
from ..bus.subjects import Subjects
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .table import table

_DESCRIPTION = """\
List the workers that answer on the bus, the operations they serve with columns
and parameters, and what was asked of them so far. `nats micro ls` of the NATS
command line sees the same workers.

  aikoryu ls
  aikoryu ls --json | jq '.[].id'"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "ls", "list workers, operations and statistics", _DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="all that the workers tell, as one JSON list")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print what is there."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    workers = uvloop.run(_workers(settings))
    if options.json:
        print(json.dumps(workers, indent=2))
        return 0
    if not workers:
        raise Failed(f"no worker answers on {settings.nats.url}: start one with `aikoryu up` or `aikoryu worker`")
    operations = list(operations_of(workers, Subjects(settings.bus.prefix, settings.bus.namespace)))
    width = shutil.get_terminal_size((100, 24)).columns
    print(_workers_table(workers), _signatures(operations, width), _statistics(operations), sep="\n\n")
    if any(operated.kept_off for operated in operations):
        print("", _breakers(operations), sep="\n")
    return 0


@dataclass
class Operated:
    """One operation, its figures summed over the workers that serve it."""

    name: str
    metadata: Mapping[str, str]
    workers: int = 0
    frames: int = 0
    errors: int = 0
    batches: int = 0
    rows: int = 0
    largest: int = 0
    processing_ns: int = 0
    spare_rows: int = 0
    engines: set[str] = field(default_factory=set)
    breakers: Counter[str] = field(default_factory=Counter)

    @property
    def kept_off(self) -> int:
        """Workers that keep it from their device."""
        return self.workers - self.breakers["closed"]


def operations_of(workers: Iterable[Mapping[str, Any]], subjects: Subjects) -> Iterable[Operated]:
    """What the workers of one namespace serve, by name."""
    found: dict[str, Operated] = {}
    for worker in workers:
        for endpoint in worker["endpoints"]:
            if not endpoint["subject"].startswith(f"{subjects.root}."):
                continue
            name = endpoint["subject"].removeprefix(f"{subjects.root}.")
            operated = found.setdefault(name, Operated(name, endpoint["metadata"]))
            data = endpoint["data"]
            operated.workers += 1
            operated.frames += endpoint["num_requests"]
            operated.errors += endpoint["num_errors"]
            operated.batches += data["batches"]
            operated.rows += data["rows"]
            operated.spare_rows += data["spare_rows"]
            operated.largest = max(operated.largest, data["largest_batch"])
            operated.processing_ns += endpoint["processing_time"]
            operated.engines.add(data["engine"])
            operated.breakers[data["breaker"]] += 1
    return [operated for _, operated in sorted(found.items())]


async def _workers(settings: Settings) -> list[dict[str, object]]:
    async with connect(settings=settings) as bus:
        return await bus.workers()


def _workers_table(workers: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for worker in workers:
        engines = {endpoint["data"]["engine"] for endpoint in worker["endpoints"]}
        since = datetime.fromisoformat(worker["started"])
        rows.append([worker["id"], worker["version"], ", ".join(sorted(engines)), _ago(since)])
    return table([["WORKER", "VERSION", "ENGINE", "UP"], *rows], "<<<>")


def _signatures(operations: Iterable[Operated], width: int) -> str:
    """A block an operation: columns in and out, and below them what else a caller must know."""
    blocks = ["OPERATION"]
    for operated in operations:
        told = operated.metadata
        signature = f"{operated.name}  ({told.get('inputs', '')}) -> ({told.get('outputs', '')})"
        lines = textwrap.wrap(signature, width, subsequent_indent="    ", break_on_hyphens=False)
        notes = [told.get("help", "")]
        notes += [f"parameters: {told['parameters']}"] if told.get("parameters") else []
        notes += [told["types"].replace("|", " ")] if told.get("types") else []
        for note in filter(None, notes):
            lines += textwrap.wrap(note, width, initial_indent="    ", subsequent_indent="    ")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def _statistics(operations: Iterable[Operated]) -> str:
    rows = [
        [
            operated.name,
            *(f"{n:,}" for n in (operated.workers, operated.frames, operated.errors, operated.rows, operated.batches)),
            f"{operated.rows / operated.batches:,.1f}" if operated.batches else "-",
            f"{operated.largest:,}" if operated.batches else "-",
            f"{operated.processing_ns / operated.frames / 1e6:,.1f}" if operated.frames else "-",
        ]
        for operated in operations
    ]
    header = ["STATISTICS", "WORKERS", "FRAMES", "ERRORS", "ROWS", "BATCHES", "ROWS/BATCH", "MOST", "MS"]
    return table([header, *rows], "<>>>>>>>>")


def _breakers(operations: Iterable[Operated]) -> str:
    """Operations that fail on their device, and run on the spare instead."""
    rows = [
        [
            operated.name,
            f"{operated.breakers['open']:,}",
            f"{operated.breakers['half_open']:,}",
            f"{operated.spare_rows:,}",
        ]
        for operated in operations
        if operated.kept_off
    ]
    return table([["BREAKERS", "OPEN", "HALF OPEN", "ROWS ON SPARE"], *rows], "<>>>")


def _ago(since: datetime) -> str:
    """The time since then, in its largest unit; none if this machine's clock is behind the worker's."""
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
