"""`aikoryu faults`: have the workers of a bus misbehave, where they are set to obey."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import uvloop

from ..agents import open_transport
from ..bus.fault_control import Answer, inject
from ..bus.subjects import Subjects
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .table import table

ANSWER_S = 0.5

_DESCRIPTION = """\
Have every worker of a bus misbehave, to see that callers get their answers all
the same. What is given replaces what was in force. A worker refuses unless it
was started with --set faults.enabled=true, which belongs on a deployment that
may fail. The exit status is 1 if one refused, or none answered.

  KIND[=SECONDS]:RATE[@FROM-TO]   with that probability, from then to then
  KIND[=SECONDS]@TIME             once, the first time after then

  batches    raise memory wrong slow hang poison die
  messages   drop delay duplicate reorder disconnect

  aikoryu faults raise:0.01                one batch in a hundred raises
  aikoryu faults slow=0.2:1@5-10 die@12    slow for a while, then dead once
  aikoryu faults drop:0.001 delay=0.05:0.01
  aikoryu faults --off

docs/faults.md says what each does, and what is to be seen of it."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "faults", "have workers misbehave, for a test", _DESCRIPTION)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("rules", metavar="RULE", nargs="*", default=[], help="what shall go wrong")
    what.add_argument("--off", action="store_true", help="nothing any more")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print what each worker says."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    answers = uvloop.run(_inject(settings, options.rules))
    if not answers:
        raise Failed(f"no worker answers on {settings.nats.url}: start one, and ask as a user who may inject faults")
    rows = [[answer.worker, _told(answer)] for answer in answers]
    print(table([["WORKER", "FAULTS"], *rows], "<<"))
    return 1 if any(answer.code for answer in answers) else 0


async def _inject(settings: Settings, rules: Sequence[str]) -> list[Answer]:
    transport = await open_transport(settings)
    try:
        subjects = Subjects(settings.bus.prefix, settings.bus.namespace)
        return await inject(transport, subjects, rules, ANSWER_S)
    finally:
        await transport.close()


def _told(answer: Answer) -> str:
    return f"{answer.code}: {answer.message}" if answer.code else " ".join(answer.rules) or "none"
