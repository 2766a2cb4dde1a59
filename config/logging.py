"""Where logs go and how they look: one stream, stderr, for structlog and for the standard library's loggers."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from structlog.typing import Processor

from .settings import LogSettings

_HANDLER = "aikoryu"


def configure(log: LogSettings) -> None:
    """Send every log of this process to stderr, as lines for people or as JSON, with UTC times in ISO 8601.

    A second call replaces what the first set up. Handlers that others put on the root logger stay.
    """
    level = logging.getLevelNamesMapping()[log.level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(log)],
            foreign_pre_chain=_common(),
        )
    )
    root = logging.getLogger()
    for earlier in [other for other in root.handlers if other.get_name() == _HANDLER]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    structlog.configure(
        processors=[*_common(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def keep_off_stdout(log: LogSettings) -> None:
    """In a program that has not set structlog up: what this library says goes to stderr, not among its output.

    The standard library's loggers, and a later set-up of the program's own, are not touched.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                *_rendering(log),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log.level.upper()]),
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _rendering(log: LogSettings) -> list[Processor]:
    terminal = sys.stderr.isatty()
    if log.format == "console" or (log.format == "auto" and terminal):
        # The plain traceback: the default one shows local variables, and so passwords.
        colors = terminal and not os.environ.get("NO_COLOR")
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
