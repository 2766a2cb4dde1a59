"""`aikoryu agents tail`: what agents publish to a topic, as it comes."""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import msgspec
import uvloop

from ..agents import open_transport
from ..agents.message import codec
from ..bus.columns import unpack
from ..bus.errors import BusError
from ..bus.frames import decode_request
from ..bus.subjects import Subjects
from ..bus.transport import Message
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .progress import say

MOST_WAITING = 16384  # messages, for a reader that is slow; then the oldest are dropped
AT_ONCE = 256  # lines printed before others get their turn

_DESCRIPTION = """\
Print what is published to a topic, as it comes, until Ctrl-C: an object a line,
{"topic": …, "message": …}. A topic may be a pattern.

  aikoryu agents tail market.nasdaq
  aikoryu agents tail 'market.>' | jq .message.price
  aikoryu agents tail '>' --count 10"""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "tail", "print what agents publish", _DESCRIPTION)
    parser.add_argument("topic", metavar="TOPIC", help="market.nasdaq, market.*, or market.>")
    parser.add_argument("--count", type=_count, metavar="N", help="end after N messages")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Listen and print; say at the end what was not printed."""
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    try:
        subject = Subjects(settings.bus.prefix, settings.bus.namespace).topic(options.topic)
    except ValueError as error:
        raise Failed(str(error)) from None
    with suppress(KeyboardInterrupt):
        uvloop.run(_tail(subject, options, settings))
    return 0


async def _tail(subject: str, options: argparse.Namespace, settings: Settings) -> None:
    transport = await open_transport(settings)
    heard = Heard(subject.removesuffix(options.topic))
    try:
        await transport.subscribe(subject, heard.on_message)
        await transport.flush()
        say(f"Listening to {options.topic} on {settings.nats.url}; Ctrl-C ends it.")
        await _print(heard, options.count)
    finally:
        if heard.dropped:
            say(f"{heard.dropped:,} messages dropped: what reads the lines is too slow")
        if heard.bad:
            say(f"{heard.bad:,} messages not understood")
        await transport.close()


class Heard:
    """What has been published and waits to be printed.

    Args:
        root: what the subjects of topics begin with.

    Attributes:
        some: set while anything waits.
        dropped: messages lost because too many waited.
        bad: messages that could not be read.
    """

    def __init__(self, root: str) -> None:
        self.some = asyncio.Event()
        self.dropped = 0
        self.bad = 0
        self._root = root
        self._waiting: deque[dict[str, Any]] = deque()

    def on_message(self, message: Message) -> None:
        """Keep every row of a frame."""
        topic = message.subject.removeprefix(self._root)
        try:
            request = decode_request(message.data)
            for row in unpack(request.cols["message"], request.n):
                self._waiting.append({"topic": topic, "message": _any.decode(row)})
        except (BusError, KeyError, TypeError):
            self.bad += 1
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self.some.set()

    def take(self, most: int) -> list[dict[str, Any]]:
        """The oldest that wait, at most so many."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if not self._waiting:
            self.some.clear()
        return taken


_any = codec(Any)


async def _print(heard: Heard, count: int | None) -> None:
    """Return when so many have been printed; without a number, never."""
    while count is None or count > 0:
        await heard.some.wait()
        lines = heard.take(AT_ONCE if count is None else min(AT_ONCE, count))
        if lines:
            print(*(msgspec.json.encode(line).decode() for line in lines), sep="\n", flush=True)
        if count is not None:
            count -= len(lines)
        await asyncio.sleep(0)  # others, the socket among them, get their turn


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of messages: write 1 or more")
    return int(text)
