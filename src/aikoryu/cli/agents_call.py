"""`aikoryu agents call`: ask one handler of an agent, once."""

from __future__ import annotations

import argparse
import json
from typing import Any

import msgspec
import uvloop

from ..agents import connect
from ..bus.errors import WrongKind
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .values import value_of

_DESCRIPTION = """\
Ask a handler of an agent, with a message given by field, or as JSON. A value
that is not JSON is taken as text. The reply comes as JSON; of a stream, an item
a line, as they come.

  aikoryu agents call greeter.greet name=Ada
  aikoryu agents call counter.add by=3
  aikoryu agents call greeter.greet --json '{"name": "Ada"}'
  aikoryu agents call account.add by=3 --key ada

A field that takes text which looks like a number: zip='"04105"'."""


def add(actions: Commands) -> None:
    """Add the action."""
    parser = add_command(actions, "call", "ask a handler of an agent", _DESCRIPTION)
    parser.add_argument("handler", metavar="NAME.HANDLER", help="the agent's name, and the handler's")
    parser.add_argument("fields", metavar="FIELD=JSON", nargs="*", type=_pair, help="a field of the message")
    parser.add_argument("--json", metavar="JSON", dest="message", help="the whole message")
    parser.add_argument("--key", help="of an agent with state, which of them")
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print what is answered."""
    agent, dot, handler = options.handler.partition(".")
    if not (agent and dot and handler) or "." in handler:
        raise Failed(f"{options.handler!r} names no handler: write AGENT.HANDLER; `aikoryu agents ls` lists them")
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    uvloop.run(_call(agent, options.key, handler, _message(options), settings))
    return 0


async def _call(agent: str, key: str | None, handler: str, message: Any, settings: Settings) -> None:
    async with connect(settings=settings) as bus:
        try:
            asking = bus.agents.get(agent, key=key)[handler]
        except ValueError as error:
            raise Failed(str(error)) from None
        try:
            _print(await asking(message))
        except WrongKind as error:
            try:
                async for item in asking.stream(message):
                    _print(item)
            except WrongKind:  # neither: it is asked by key, or has none
                raise error from None


def _message(options: argparse.Namespace) -> Any:
    if options.message is None:
        return {name: value_of(text) for name, text in options.fields}
    if options.fields:
        raise Failed("the message comes by field or as --json: give one of them")
    try:
        return json.loads(options.message)
    except ValueError as error:
        raise Failed(f'--json is not JSON ({error}): quote it, --json \'{{"name": "Ada"}}\'') from None


def _print(reply: Any) -> None:
    print(msgspec.json.encode(reply).decode(), flush=True)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is no FIELD=VALUE: write name=Ada")
    return name, value
