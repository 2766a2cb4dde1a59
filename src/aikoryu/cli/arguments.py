"""Arguments that commands share, and how they become settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from ..config import Settings, load

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(commands: Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """Add a command: `summary` is its line in the list, `description` its own help."""
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_settings(parser: argparse.ArgumentParser, *, nats: bool = False) -> None:
    """Let a command take any setting; with `nats`, an option of its own for the server's address."""
    group = parser.add_argument_group("settings (aikoryu --settings lists them)")
    if nats:
        group.add_argument(
            "--nats", metavar="URL", help="the NATS server, nats://host:port; short for --set nats.url=URL"
        )
    group.add_argument(
        "--set", action="append", default=[], type=_pair, metavar="KEY=VALUE", help="one setting; repeatable"
    )
    group.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings (default ./aikoryu.toml)")


def add_worker(parser: argparse.ArgumentParser) -> None:
    """Let a command that runs a worker say what the worker is to be."""
    parser.add_argument(
        "--device", metavar="DEVICE", help="auto, cpu, cuda:0 or several as cuda:0,cuda:1; short for worker.device"
    )
    parser.add_argument(
        "--fronts", metavar="N", help="processes that speak to the bus and share the engines; short for worker.fronts"
    )
    parser.add_argument(
        "--operations",
        action="append",
        metavar="FILE_OR_MODULE",
        help="Python file or module with operations of your own (@aikoryu.operation); repeatable",
    )


def settings_of(options: argparse.Namespace, **defaults: str) -> Settings:
    """The settings that a command's arguments ask for.

    Args:
        options: the command's parsed arguments.
        defaults: level of the log where it is not that of the settings, `log__level="warning"`: what the command line
            says still wins.

    Raises:
        ConfigError: a setting is unknown or not allowed.
    """
    flags: dict[str, object] = {key.replace("__", "."): value for key, value in defaults.items()}
    flags |= dict(options.set)
    if getattr(options, "nats", None):
        flags["nats.url"] = options.nats
    for name in ("device", "fronts", "operations"):
        if getattr(options, name, None):
            flags[f"worker.{name}"] = getattr(options, name)
    return load(options.config, flags=flags)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE: write cpu.threads=2")
    return key, value
