"""The app: the agents of one program, and the bus they live on."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar, overload

from ..bus.errors import BadParameter, BusError
from ..bus.memory import MemoryBus
from ..bus.subjects import Subjects
from ..bus.transport import Transport
from ..config import ConfigError, Settings, configure_logging, keep_off_stdout, load
from .agent import CONCURRENCY, KIND, MAILBOX, NAME, Agent, Kind, Resident, kind_of
from .bus import Bus, open_transport, session
from .handler import Priority
from .process import AgentProcess
from .tool import kind_of_tool

A = TypeVar("A", bound=type[Agent])
F = TypeVar("F", bound=Callable[..., Any])

LONGEST_ABOUT = 1024

UNANSWERED = 3  # exit status, as a worker's: calls were left when the time for a stop had passed
INTERRUPTED = 128 + signal.SIGINT


class _Registered(NamedTuple):
    """An agent that is made when the app starts."""

    name: str
    make: Callable[[], Any]
    kind: Kind
    capabilities: frozenset[str]
    concurrency: int
    mailbox: int
    about: str

    def resident(self) -> Resident:
        agent = self.make() if self.kind.state is None else self.make
        return Resident(self.name, agent, self.kind, self.capabilities, self.concurrency, self.mailbox, self.about)


class App:
    """The agents of one program.

        app = App("nats://localhost:4222")

        @app.agent("greeter")
        class Greeter(Agent):
            @handler
            async def greet(self, message: Greeting) -> Reply: ...

        app.run()                   # until a signal
        async with app as bus: ...  # or beside one's own code, in tests too

    Args:
        url: the NATS server; by default the settings' `nats.url`.
        namespace: keeps deployments on one server apart; by default the settings' `bus.namespace`.
        settings: by default those of `aikoryu.toml` and the `AIKORYU_*` variables, read when the app starts.
    """

    def __init__(
        self, url: str | None = None, *, namespace: str | None = None, settings: Settings | None = None
    ) -> None:
        self._flags = {key: value for key, value in (("nats.url", url), ("bus.namespace", namespace)) if value}
        self._settings = settings
        self._memory: MemoryBus | None = None
        self._registered: dict[str, _Registered] = {}
        self._bus: Bus | None = None
        self._process: AgentProcess | None = None
        self._open = AsyncExitStack()

    @classmethod
    def in_memory(cls, memory: MemoryBus | None = None, *, settings: Settings | None = None) -> App:
        """An app without a server, inside one event loop: for tests.

        Args:
            memory: a bus that it shares with others; one of its own by default.
            settings: the defaults unless given; no file and no variable is read.
        """
        app = cls(settings=settings or Settings())
        app._memory = memory or MemoryBus()
        return app

    @property
    def bus(self) -> Bus:
        """What the program itself asks through, while the app runs.

        Raises:
            RuntimeError: it does not.
        """
        if self._bus is None:
            raise RuntimeError("the app does not run: use `async with app`")
        return self._bus

    def agent(
        self,
        name: str,
        *,
        capabilities: Iterable[str] = (),
        about: str = "",
        concurrency: int = CONCURRENCY,
        mailbox: int = MAILBOX,
    ) -> Callable[[A], A]:
        """Make a class an agent of this app; one object of it is made when the app starts.

        Args:
            name: one subject token; every process of the bus that has an agent of this name gets a share of its calls.
            capabilities: by which others find it.
            about: in words, what it is for, 1,024 characters at the most; see `dispatch`.
            concurrency: calls that run at once in this process.
            mailbox: calls that wait beside those; beyond it callers get `busy`.
        """

        def register(cls: A) -> A:
            self.add(cls, name, capabilities=capabilities, about=about, concurrency=concurrency, mailbox=mailbox)
            setattr(cls, NAME, name)
            return cls

        return register

    def add(
        self,
        agent: Agent | type[Agent],
        name: str,
        *,
        capabilities: Iterable[str] = (),
        about: str = "",
        concurrency: int = CONCURRENCY,
        mailbox: int = MAILBOX,
    ) -> None:
        """Add an agent, by its class or as the object that it shall be; the rest as for `agent`.

        Raises:
            TypeError: the class is no agent's, or a method of it no handler; the message says what to change.
            ValueError: the name is none, or taken in this app.
        """
        cls = agent if isinstance(agent, type) else type(agent)
        if not issubclass(cls, Agent):
            raise TypeError(f"{cls.__qualname__} is no agent: make it a subclass of aikoryu.Agent")
        kind = kind_of(cls)
        if kind.state is not None and not isinstance(agent, type):
            raise TypeError(f"{cls.__qualname__} has state, one object a call: add the class")
        make = agent if isinstance(agent, type) else lambda: agent
        self._register(name, make, kind, capabilities, concurrency, mailbox, about)

    @overload
    def tool(self, function: F, /) -> F: ...
    @overload
    def tool(
        self,
        *,
        name: str = "",
        capabilities: Iterable[str] = (),
        about: str = "",
        concurrency: int = CONCURRENCY,
        mailbox: int = MAILBOX,
        deadline_s: float | None = None,
        priority: Priority = "normal",
        idempotent: bool = False,
    ) -> Callable[[F], F]: ...

    def tool(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str = "",
        capabilities: Iterable[str] = (),
        about: str = "",
        concurrency: int = CONCURRENCY,
        mailbox: int = MAILBOX,
        deadline_s: float | None = None,
        priority: Priority = "normal",
        idempotent: bool = False,
    ) -> Any:
        """Make a plain function an agent with one handler, `call`; it stays a function.

        Others ask `await bus.agents.get("add").call({"a": 1, "b": 2})`. One that is not `async` runs in a thread.

        Args:
            function: where the decorator is written without arguments.
            name: the agent's; by default the function's.
            capabilities, about, concurrency, mailbox: as for `agent`.
            deadline_s, priority, idempotent: as for `handler`.
        """

        def register(function: F) -> F:
            kind = kind_of_tool(
                function, concurrency=concurrency, deadline_s=deadline_s, priority=priority, idempotent=idempotent
            )
            called = name or function.__name__
            self._register(called, lambda: None, kind, capabilities, concurrency, mailbox, about)
            setattr(function, NAME, called)
            setattr(function, KIND, kind)
            return function

        return register if function is None else register(function)

    async def dispatch(
        self,
        task: Any,
        handler: str,
        *,
        about: str = "",
        capabilities: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> Any:
        """Have a task done by whichever agent suits it best, while the app runs; see `Dispatcher.dispatch`."""
        return await self.bus.dispatch(task, handler, about=about, capabilities=capabilities, timeout_s=timeout_s)

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, then answer what was accepted; a second signal ends at once.

        Raises:
            SystemExit: the status is not 0: 1 it failed, 2 a setting is wrong, 3 calls were left unanswered, 130 it was
                interrupted. A sentence on stderr says why.
        """
        import uvloop

        try:
            configure_logging(self._load().log)
            drained = uvloop.run(self._run())
        except (ConfigError, BusError) as error:
            print(f"aikoryu: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, ConfigError) else 1)
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.exit(INTERRUPTED)
        if not drained:
            sys.exit(UNANSWERED)

    async def __aenter__(self) -> Bus:
        if self._bus is not None:
            raise RuntimeError("the app runs already")
        settings = self._load()
        keep_off_stdout(settings.log)
        async with AsyncExitStack() as stack:
            transport = await self._connect(settings)
            stack.push_async_callback(transport.close)
            bus = await stack.enter_async_context(session(transport, settings))
            residents = [each.resident() for each in self._registered.values()]
            self._process = AgentProcess(transport, settings, bus, residents, self._memory)
            await self._process.start()
            self._bus = bus
            self._open = stack.pop_all()
        return bus

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> bool:
        """Answer what was accepted, then close the connection; false if some was left."""
        assert self._process is not None
        async with self._open:
            drained = await self._process.stop()
            self._bus = None
        return drained

    async def _run(self) -> bool:
        asked = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None

        def on_signal() -> None:
            if asked.is_set():
                task.cancel()
            asked.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        await self.__aenter__()
        try:
            await asked.wait()
        except asyncio.CancelledError:  # asked twice before the first was heard
            await self._open.aclose()
            raise
        return await self._stop()

    def _load(self) -> Settings:
        if self._settings is None:
            return load(flags=self._flags)
        given = self._settings
        url, namespace = self._flags.get("nats.url"), self._flags.get("bus.namespace")
        return replace(
            given,
            nats=replace(given.nats, url=url) if url else given.nats,
            bus=replace(given.bus, namespace=namespace) if namespace else given.bus,
        )

    async def _connect(self, settings: Settings) -> Transport:
        return self._memory.connect() if self._memory is not None else await open_transport(settings)

    def _register(
        self,
        name: str,
        make: Callable[[], Any],
        kind: Kind,
        capabilities: Iterable[str],
        concurrency: int,
        mailbox: int,
        about: str,
    ) -> None:
        if self._bus is not None:
            raise RuntimeError(f"agent {name!r}: the app runs already: add agents before it starts")
        Subjects().agent(name)  # for its check
        if name in self._registered:
            raise ValueError(f"agent {name!r}: the app has one of this name; give this one another")
        if concurrency < 1 or mailbox < 0:
            raise BadParameter(
                f"agent {name!r}: concurrency is {concurrency}, mailbox {mailbox}: use at least 1, and 0"
            )
        if len(about) > LONGEST_ABOUT:
            raise BadParameter(f"agent {name!r}: about has {len(about)} characters: use {LONGEST_ABOUT} at most")
        if isinstance(capabilities, str):
            raise BadParameter(f"agent {name!r}: capabilities are a set of names, not one text")
        self._registered[name] = _Registered(name, make, kind, frozenset(capabilities), concurrency, mailbox, about)
