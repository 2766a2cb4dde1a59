"""`aikoryu agents` against agents of this process, on a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from aikoryu.agents import Agent, App, Message, Stateful, handler
from aikoryu.agents.bus import Bus
from aikoryu.bus.memory import MemoryMessage
from aikoryu.bus.server import EmbeddedServer
from aikoryu.cli import agents_tail, main
from aikoryu.cli.agents_tail import Heard
from aikoryu.config import ServerSettings

from .conftest import Start


class Greet(Message):
    name: str
    times: int = 1


class Greeter(Agent):
    @handler
    async def greet(self, message: Greet) -> dict[str, str]:
        return {"text": f"Hello, {message.name}!" * message.times}

    @handler
    async def spell(self, message: Greet) -> AsyncIterator[str]:
        for letter in message.name:
            yield letter


@dataclass
class Served:
    """Agents on a server.

    Attributes:
        url: the server's.
        bus: asks and tells from this process.
    """

    url: str
    bus: Bus

    async def run(self, *arguments: str) -> int:
        """Run `aikoryu agents …` in a thread of its own; its exit status."""
        return await asyncio.to_thread(main, ["agents", *arguments, "--nats", self.url])


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with EmbeddedServer(ServerSettings(port=0)) as server:
        app = App(server.url)
        app.add(Greeter, "greeter", capabilities={"greet", "polite"})
        app.add(Greeter, "rude", capabilities={"greet"})
        async with app as bus:
            yield Served(server.url, bus)


async def test_ls_is_a_line_an_agent(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert await served.run("ls") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["AGENT", "PROCESSES", "LOAD", "CAPABILITIES", "HANDLERS"],
        ["greeter", "1", "0.00", "greet,", "polite", "greet,", "spell"],
        ["rude", "1", "0.00", "greet", "greet,", "spell"],
    ]


async def test_ls_as_json_and_by_capability(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert await served.run("ls", "--json", "--capability", "greet", "--capability", "polite") == 0
    (greeter,) = json.loads(capsys.readouterr().out)
    assert greeter.pop("process")
    assert greeter == {
        "name": "greeter",
        "capabilities": ["greet", "polite"],
        "handlers": ["greet", "spell"],
        "load": 0.0,
    }


async def test_ls_says_what_to_do_where_nobody_is(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert await served.run("ls", "--capability", "fly") == 1
    assert "no agent on nats://" in (error := capsys.readouterr().err)
    assert error.endswith("can fly\n")
    assert await served.run("ls", "--set", "bus.namespace=elsewhere") == 1
    assert "`aikoryu new my-agent` makes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["greeter.greet", "name=Ada"], '{"text":"Hello, Ada!"}\n'),
        (["greeter.greet", "name=Ada", "times=2"], '{"text":"Hello, Ada!Hello, Ada!"}\n'),
        (["greeter.greet", "--json", '{"name": "Ada"}'], '{"text":"Hello, Ada!"}\n'),
        (["greeter.spell", "name=Ada"], '"A"\n"d"\n"a"\n'),
    ],
)
async def test_call_prints_replies_and_streams(
    served: Served, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert await served.run("call", *arguments) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["greeter"], "'greeter' names no handler: write AGENT.HANDLER"),
        (["greeter.greet.x"], "names no handler"),
        (["gre*ter.greet"], "use letters"),
        (["greeter.greet", "name=1"], "Expected `str`, got `int` - at `$.name`"),
        (["greeter.greet", "--json", "{name: 1}"], "--json is not JSON"),
        (["greeter.greet", "name=Ada", "--json", "{}"], "give one of them"),
        (["greeter.dance"], "dance"),
        (["nobody.greet", "--set", "bus.timeout_s=2"], "nobody"),
    ],
)
async def test_call_that_fails_is_one_sentence_and_status_1(
    served: Served, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert await served.run("call", *arguments) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert why in err


class Account(Stateful[int]):
    @handler
    async def add(self, by: int) -> int:
        self.state += by
        return self.state


async def test_call_of_an_agent_with_state_names_its_key(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(served.url)
    app.add(Account, "account")
    async with app:
        for key, total in (("ada", 3), ("bo", 3), ("ada", 6)):
            assert await served.run("call", "account.add", "--json", "3", "--key", key) == 0
            assert capsys.readouterr().out == f"{total}\n"
        assert await served.run("call", "account.add", "--json", "3") == 1
        assert "account.add is of a key: name it" in capsys.readouterr().err


async def test_tail_prints_what_comes_until_ctrl_c(served: Served, start: Start) -> None:
    command = start("agents", "tail", "market.>", "--nats", served.url)
    command.hear("Listening to market.>")
    served.bus.agents.publish("market.nasdaq", {"price": 1.5})
    served.bus.agents.publish("other", {"price": 2})
    served.bus.agents.publish("market.xetra", ["a", None])
    await asyncio.sleep(0)
    assert json.loads(await asyncio.to_thread(lambda: command.hear("nasdaq").string)) == {
        "topic": "market.nasdaq",
        "message": {"price": 1.5},
    }
    assert await asyncio.to_thread(lambda: command.hear("xetra").string) == (
        '{"topic":"market.xetra","message":["a",null]}\n'
    )
    command.interrupt()
    assert command.end() == 0
    assert "other" not in command.words


async def test_tail_ends_after_a_count(served: Served, start: Start) -> None:
    command = start("agents", "tail", "news", "--count", "2", "--nats", served.url)
    command.hear("Listening")
    for number in range(5):
        served.bus.agents.publish("news", number)
    await asyncio.sleep(0)
    assert await asyncio.to_thread(command.end) == 0
    assert command.words.splitlines()[1:] == ['{"topic":"news","message":0}', '{"topic":"news","message":1}']


async def test_tail_of_no_topic_is_refused(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert await served.run("tail", "market..x") == 1
    assert "topic 'market..x': use letters" in capsys.readouterr().err


def test_tail_keeps_a_bounded_number_and_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_tail, "MOST_WAITING", 3)
    heard = Heard("root.")
    for number in range(5):
        frame = json.dumps({"v": 1, "n": 1, "cols": {"message": {"t": "utf8", "d": [str(number)]}}})
        heard.on_message(MemoryMessage("root.news", "", frame.encode()))
    heard.on_message(MemoryMessage("root.news", "", b"nonsense"))
    heard.on_message(MemoryMessage("root.news", "", b'{"v": 1, "n": 0, "cols": {}}'))
    assert (heard.dropped, heard.bad) == (2, 2)
    assert [each["message"] for each in heard.take(2)] == [2, 3]
    assert heard.some.is_set()
    assert [each["message"] for each in heard.take(2)] == [4]
    assert not heard.some.is_set()
