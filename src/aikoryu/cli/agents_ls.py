"""`aikoryu agents ls`: which agents there are, what they can do, and how much they have to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

import uvloop

from ..agents import open_transport
from ..agents.listing import Entry
from ..agents.lookout import Lookout
from ..bus.subjects import Subjects
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .table import table

_DESCRIPTION = """\
List the agents of a bus. LOAD is what they run and what waits, over what they
may run at once: above 1 callers wait.

  aikoryu agents ls
  aikoryu agents ls --capability retrieve
  aikoryu agents ls --json | jq '.[] | select(.load > 1)'

`nats micro info aikoryu-agents` of the NATS command line has the schemas of
what their handlers take."""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "ls", "list agents, what they can do, and their load", _DESCRIPTION)
    parser.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="NAME",
        dest="capabilities",
        help="only those that can do this; repeatable, then all of it",
    )
    parser.add_argument("--json", action="store_true", help="each agent of each process, as one JSON list")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print who is there."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    found = uvloop.run(_find(settings, options.capabilities))
    if options.json:
        print(json.dumps([_plain(entry) for entry in found], indent=2))
    elif found:
        print(_table(found))
    elif options.capabilities:
        raise Failed(f"no agent on {settings.nats.url} can {' and '.join(options.capabilities)}")
    else:
        raise Failed(f"no agent is on {settings.nats.url}: start one, `aikoryu new my-agent` makes it")
    return 0


async def _find(settings: Settings, capabilities: Iterable[str]) -> list[Entry]:
    transport = await open_transport(settings)
    lookout = Lookout(transport, Subjects(settings.bus.prefix, settings.bus.namespace))
    try:
        return await lookout.find(capabilities=capabilities)
    finally:
        await lookout.close()
        await transport.close()


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "process": entry.process,
        "capabilities": sorted(entry.capabilities),
        "handlers": list(entry.handlers),
        "load": entry.load,
    }


def _table(found: Iterable[Entry]) -> str:
    """A line an agent, whichever processes it is in."""
    by_name: dict[str, list[Entry]] = {}
    for entry in found:
        by_name.setdefault(entry.name, []).append(entry)
    rows = [
        [
            name,
            f"{len(entries):,}",
            f"{sum(entry.load for entry in entries) / len(entries):.2f}",
            ", ".join(sorted({each for entry in entries for each in entry.capabilities})) or "-",
            ", ".join(dict.fromkeys(each for entry in entries for each in entry.handlers)) or "-",
        ]
        for name, entries in sorted(by_name.items())
    ]
    return table([["AGENT", "PROCESSES", "LOAD", "CAPABILITIES", "HANDLERS"], *rows], "<>><<")
