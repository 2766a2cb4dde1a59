"""The command line, `aikoryu`: each command is a module here, `main` finds it and turns errors into sentences."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from ..bus.errors import BusError
from ..config import VERSION, ConfigError, describe
from . import agents, auth, bench, call, context, demo, doctor, faults, ls, new, packets, record, replay, up, worker
from .failure import Failed

COMMANDS = (up, worker, call, ls, agents, new, packets, context, record, replay, demo, doctor, auth, faults, bench)
INTERRUPTED = 128 + 2  # as shells report a program that SIGINT ended

_DESCRIPTION = """\
Aikoryu is an event-driven async message bus for agents, with the GPU behind it.
Agents send requests over NATS; a worker collects those that arrive in the same
moment, runs them as one batch, and answers each. Without a GPU the same
operations run on the CPU."""

_EXAMPLES = """\
start here:
  aikoryu doctor       is everything here? what to do where it is not
  aikoryu demo         64 agents against one worker, every answer checked
  aikoryu up           a NATS server and a worker on this machine

then, in another terminal:
  aikoryu ls           workers, what they can be asked, how much they were
  aikoryu call matrix.matmul a='[[1,2],[3,4]]' b='[[1,0],[0,1]]'
  aikoryu call models.embed.all-MiniLM-L6-v2 text='The server is on fire.'

with agents of your own:
  aikoryu new my-agent             a folder with one, and a test of it
  aikoryu agents ls                which are there, and what they can do
  aikoryu agents call greeter.greet name=Ada
  aikoryu agents tail 'market.>'   what they publish

with agents that know of one another:
  aikoryu context route team --text 'Who can mend the router?'
  aikoryu context plot team ada -o ada.svg   whom her context reaches

with captures of packets:
  aikoryu packets inspect trace.pcap    a line a packet
  aikoryu packets classify trace.pcap --rules edge.rules

to test agents and models against what was answered before:
  aikoryu record night.rec --subjects 'models.>'
  aikoryu replay night.rec --speed max --verify

with a NATS server of your own:
  aikoryu worker --nats nats://10.0.0.1:4222 --operations my_operations.py
  aikoryu ls --nats nats://10.0.0.1:4222
  aikoryu auth init DIRECTORY    users and rights for it

with a worker that may fail, --set faults.enabled=true:
  aikoryu faults die@3 drop:0.01   its engine dies, messages are lost

in the source tree:
  aikoryu bench bus    the bus against what one would use instead

settings:
  aikoryu up --set cpu.threads=2 --set server.port=4333
  aikoryu up --config FILE         a TOML file; by default ./aikoryu.toml
  AIKORYU_CPU_THREADS=2 aikoryu up
  aikoryu --settings               lists them all

`aikoryu COMMAND --help` explains a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its arguments; by default those of the process.

    Returns:
        The exit status: 0 well, 1 it failed, 2 a setting is wrong, 3 a worker left some unanswered, 130 interrupted.
        A sentence on stderr says why.

    Raises:
        SystemExit: the arguments are wrong (2), or help was asked for (0).
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        if options.run is None:
            parser.print_help(sys.stderr)
            return 2
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        return _complain(error, 2)
    except (BusError, Failed) as error:
        return _complain(error, 1)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aikoryu",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aikoryu {VERSION}")
    parser.add_argument("--settings", action=_ListSettings, nargs=0, help="list every setting, then exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(run=None)
    for command in COMMANDS:
        command.add(commands)
    return parser


class _ListSettings(argparse.Action):
    """Print every setting: key, default, meaning, and what may be given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for key, default, allowed, meaning in describe():
            shown = ",".join(default) if isinstance(default, tuple) else default
            print(f"{key} = {shown}".rstrip(), f"    {meaning}", f"    Give {allowed}.", sep="\n")
        parser.exit()


def _complain(error: Exception, status: int) -> int:
    print(f"aikoryu: {error}", file=sys.stderr)
    return status
