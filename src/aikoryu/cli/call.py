"""`aikoryu call`: ask for one row, or for many read as lines of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

import uvloop

from ..agents import Bus, connect
from ..bus.errors import BadColumn, BadFrame, BusError
from ..bus.pending import Answer
from ..bus.subjects import Subjects
from ..config import Settings, configure_logging
from .arguments import Commands, add_command, add_settings, settings_of
from .failure import Failed
from .lines import read_lines
from .values import inputs_of, plain, row_of, value_of

IN_FLIGHT_ROWS = 4096  # a slow reader of the answers holds back the rows that are read

_DESCRIPTION = """\
Ask an operation for one row, given by column, or for many, given as lines of
JSON, one object a row. A value that is not JSON is taken as text. Answers come
as lines of JSON, in the order of the rows; a row that fails is told on stderr,
and the exit status is 1.

  aikoryu call matrix.matmul a='[[1,2],[3,4]]' b='[[1,0],[0,1]]'
  aikoryu call models.embed.all-MiniLM-L6-v2 text='hello'
  aikoryu call demo.scale x='[1,2,3]' -p factor=3
  echo '{"text": "hello"}' | aikoryu call models.embed.all-MiniLM-L6-v2
  aikoryu call models.embed.all-MiniLM-L6-v2 --rows texts.jsonl > vectors.jsonl

`aikoryu ls` says which columns and parameters an operation takes. Numbers
become float32 or int64 unless the operation takes others."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "call", "ask an operation, with rows from arguments or JSON lines", _DESCRIPTION)
    parser.add_argument("operation", metavar="OPERATION", help="its name, such as matrix.matmul")
    parser.add_argument("columns", metavar="COLUMN=JSON", nargs="*", type=_pair, help="the value of a column")
    parser.add_argument(
        "-p",
        action="append",
        default=[],
        type=_pair,
        dest="parameters",
        metavar="NAME=JSON",
        help="a parameter; repeatable",
    )
    parser.add_argument(
        "--rows", metavar="FILE", default="-", help="file of rows (default: stdin, where no column is given)"
    )
    add_settings(parser, nats=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, print, and return 1 if any row failed."""
    if options.columns and options.rows != "-":
        raise Failed("rows come from the arguments or from --rows FILE: give one of them")
    if not options.columns and options.rows == "-" and sys.stdin.isatty():
        raise Failed(
            "no row: give COLUMN=JSON, or --rows FILE, or lines of JSON on stdin; `aikoryu ls` lists the columns"
        )
    settings = settings_of(options, log__level="warning")
    configure_logging(settings.log)
    return uvloop.run(_call(options, settings))


async def _call(options: argparse.Namespace, settings: Settings) -> int:
    async with connect(settings=settings) as bus:
        subject = _subject(options.operation, settings)
        asking = _Asking(bus, options.operation, options.parameters, await _told(bus, subject))
        if options.columns:
            _print(await asking.typed(options.columns))
            return 0
        return await asking.lines(options.rows)


class _Asking:
    """The calls of one command."""

    def __init__(self, bus: Bus, operation: str, parameters: list[tuple[str, str]], told: Mapping[str, str]) -> None:
        self._bus = bus
        self._operation = operation
        self._parameters = {name: value_of(text) for name, text in parameters}
        self._inputs = inputs_of(told)
        self._no_columns = set(told.get("parameters", "").split(", ")) - {"", *self._inputs}
        self._asked: asyncio.Queue[Answer | BusError | None] = asyncio.Queue(IN_FLIGHT_ROWS)

    def typed(self, columns: list[tuple[str, str]]) -> Answer:
        """Ask for the row that the arguments give."""
        return self._ask({name: value_of(text, self._inputs.get(name)) for name, text in columns})

    async def lines(self, path: str) -> int:
        """Ask for every line, and print the answers in their order as they come; 1 if a row failed."""
        asking = asyncio.create_task(self._ask_lines(path))
        status, row = 0, 0
        try:
            while (asked := await self._asked.get()) is not None:
                try:
                    if isinstance(asked, BusError):
                        raise asked
                    _print(await asked)
                except BusError as error:
                    print(f"row {row}: {error.code}: {error}", file=sys.stderr)
                    status = 1
                row += 1
            await asking
            return status
        finally:
            asking.cancel()

    async def _ask_lines(self, path: str) -> None:
        try:
            async for line in read_lines(path):
                await self._asked.put(self._ask_line(line))
        finally:
            await self._asked.put(None)

    def _ask_line(self, line: bytes) -> Answer | BusError:
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("no object")
            return self._ask(values)
        except ValueError as error:
            return BadFrame(f'write a row as {{"column": value}}, one a line ({error})')
        except BusError as error:
            return error

    def _ask(self, values: Mapping[str, Any]) -> Answer:
        for name in values.keys() & self._no_columns:
            raise BadColumn(f"{name!r} is a parameter, no column: give it as -p {name}={json.dumps(values[name])}")
        return self._bus.call(self._operation, row_of(values, self._inputs), self._parameters)


def _subject(operation: str, settings: Settings) -> str:
    try:
        return Subjects(settings.bus.prefix, settings.bus.namespace).operation(operation)
    except ValueError as error:
        raise Failed(str(error)) from None


async def _told(bus: Bus, subject: str) -> Mapping[str, str]:
    """What some worker tells of the operation; nothing where none may be asked."""
    endpoints = [endpoint for worker in await bus.workers() for endpoint in worker["endpoints"]]  # type: ignore[attr-defined]
    for endpoint in endpoints:
        if endpoint["subject"] == subject:
            told: Mapping[str, str] = endpoint["metadata"]
            return told
    return {}


def _print(answer: Mapping[str, Any]) -> None:
    print(json.dumps({name: plain(value) for name, value in answer.items()}, ensure_ascii=False), flush=True)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE: write x='[1, 2]'")
    return name, value
