"""Tools: a plain function as an agent with one handler, `call`."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import is_dataclass
from functools import cache, partial
from typing import Any, get_type_hints

import msgspec

from .agent import Kind
from .call import Call
from .handler import PRIORITIES, Handler, Priority
from .message import codec

CALL = "call"


def kind_of_tool(
    function: Callable[..., Any], *, concurrency: int, deadline_s: float | None, priority: Priority, idempotent: bool
) -> Kind:
    """A function as a kind of agent.

    Its message is the map of its parameters, or, if it has one that is a struct, a dataclass or a model, that. A
    function that is not `async` runs in a thread, so that it may block; nothing ends a thread, so one whose caller has
    left counts among the `concurrency` that run at once until it returns.

    Raises:
        TypeError: a parameter's type is not known, or not one of messages.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    call_by = next((name for name in parameters if name == CALL or hints.get(name) is Call), None)
    given = [each for name, each in parameters.items() if name != call_by]
    whole = len(given) == 1 and _is_message(hints.get(given[0].name))
    # Without parameters it takes whatever is sent: `call()` sends None.
    message = (hints[given[0].name] if whole else _struct(function.__name__, given, hints)) if given else Any
    asynchronous = inspect.iscoroutinefunction(function)

    @cache
    def threads() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(concurrency, f"aikoryu-{function.__name__}")

    async def run(_tool: Any, message: Any, call: Call) -> Any:
        values = [message] if whole else [getattr(message, each.name) for each in given]
        arguments = dict(zip((each.name for each in given), values, strict=True))
        if call_by is not None:
            arguments[call_by] = call
        if asynchronous:
            return await function(**arguments)
        called = partial(contextvars.copy_context().run, function, **arguments)
        return await asyncio.get_running_loop().run_in_executor(threads(), called)

    run.__doc__ = function.__doc__
    handler = Handler(
        CALL,
        run,
        ("message", "call"),
        codec(message),
        codec(hints.get("return", Any)),
        streams=False,
        deadline_s=deadline_s,
        priority=PRIORITIES[priority],
        idempotent=idempotent,
    )
    return Kind({CALL: handler}, [], {CALL: handler.metadata})


def _is_message(type_: Any) -> bool:
    return isinstance(type_, type) and (
        issubclass(type_, msgspec.Struct) or is_dataclass(type_) or hasattr(type_, "model_validate")
    )


def _struct(name: str, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for each in parameters:
        type_ = hints.get(each.name, Any)
        fields.append((each.name, type_) if each.default is each.empty else (each.name, type_, each.default))
    return msgspec.defstruct(name, fields, kw_only=True)
