"""Orders to misbehave: who hears them, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from aikoryu.bus.errors import BadParameter, Refused
from aikoryu.bus.fault_control import Answer, FaultControl, Order, inject
from aikoryu.bus.faults import Rule
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.subjects import Subjects
from aikoryu.bus.transport import Message
from aikoryu.config import FaultSettings

SUBJECTS = Subjects()
WAIT_S = 0.05
ON = FaultSettings(enabled=True)


class Worker:
    """The worker's side, and what it was told to put in force."""

    def __init__(self, bus: MemoryBus, name: str, settings: FaultSettings = ON) -> None:
        self.applied: list[tuple[str, list[Rule]]] = []
        self.control = FaultControl(
            bus.connect("_WORKER"),
            SUBJECTS,
            name,
            settings,
            lambda reply: reply.startswith("_INBOX."),
            lambda order, rules: self.applied.append((order, rules)),
            lambda: {"drop": len(self.applied)},
        )

    @property
    def kinds(self) -> list[list[str]]:
        return [[rule.kind for rule in rules] for _, rules in self.applied]


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
async def workers(bus: MemoryBus) -> AsyncIterator[list[Worker]]:
    """Two that may fail and one that may not."""
    made = [Worker(bus, "w2"), Worker(bus, "w1"), Worker(bus, "w3", FaultSettings())]
    for worker in made:
        await worker.control.start()
    yield made
    for worker in made:
        await worker.control.stop()


async def asked(bus: MemoryBus, payload: bytes, reply: str = "_INBOX.me") -> list[bytes]:
    """What is answered to bytes of any kind."""
    connection, answers = bus.connect(), list[Message]()
    await connection.subscribe(reply, answers.append)
    await connection.publish(SUBJECTS.faults, payload, reply)
    for _ in range(8):
        await asyncio.sleep(0)
    await connection.close()
    return [bytes(message.data) for message in answers]


async def test_every_worker_says_what_it_does_and_who_may_not_refuses(bus: MemoryBus, workers: list[Worker]) -> None:
    before = time.monotonic()
    answers = await inject(bus.connect(), SUBJECTS, ["raise:0.5", "die@3"], WAIT_S)
    assert [(answer.worker, answer.rules, answer.code) for answer in answers] == [
        ("w1", ["raise:0.5", "die@3"], ""),
        ("w2", ["raise:0.5", "die@3"], ""),
        ("w3", [], "refused"),
    ]
    assert "set faults.enabled=true" in answers[2].message
    assert [worker.kinds for worker in workers] == [[["raise", "die"]], [["raise", "die"]], []]
    (_, (_, die)), *_ = workers[0].applied
    assert before + 3 <= die.begin <= time.monotonic() + 3


async def test_order_has_the_same_name_everywhere_and_the_next_another(bus: MemoryBus, workers: list[Worker]) -> None:
    for _ in range(2):
        await inject(bus.connect(), SUBJECTS, ["raise@0"], WAIT_S)
    first, second = ([name for name, _ in worker.applied] for worker in workers[:2])
    assert first == second
    assert len(set(first)) == 2


async def test_order_replaces_what_was_in_force_and_none_ends_it(bus: MemoryBus, workers: list[Worker]) -> None:
    for rules in (["raise:1"], ["drop:1"], []):
        answers = await inject(bus.connect(), SUBJECTS, rules, WAIT_S)
        assert answers[0].rules == rules
    assert workers[0].kinds == [["raise"], ["drop"], []]


async def test_rule_that_is_none_is_told_before_anybody_is_asked(bus: MemoryBus, workers: list[Worker]) -> None:
    with pytest.raises(BadParameter, match="there is no 'rise'"):
        await inject(bus.connect(), SUBJECTS, ["raise:1", "rise:1"], WAIT_S)
    assert [worker.applied for worker in workers] == [[], [], []]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (msgspec.msgpack.encode(Order(["raise:1", "rise:1"])), "bad_parameter"),
        (b"garbage", "bad_frame"),
        (b'{"rules": "raise:1"}', "bad_frame"),
        (b'{"rules": [], "v": 2}', "bad_version"),
        (b"", "bad_frame"),
    ],
)
async def test_order_that_is_none_changes_nothing(
    bus: MemoryBus, workers: list[Worker], payload: bytes, code: str
) -> None:
    await inject(bus.connect(), SUBJECTS, ["slow:1"], WAIT_S)
    decode = msgspec.json.decode if payload.startswith(b"{") else msgspec.msgpack.decode
    answers = sorted((decode(answer, type=Answer) for answer in await asked(bus, payload)), key=lambda one: one.worker)
    assert [(answer.code, answer.rules) for answer in answers] == [
        (code, ["slow:1"]),
        (code, ["slow:1"]),
        ("refused", []),
    ]
    assert [len(worker.applied) for worker in workers] == [1, 1, 0]


async def test_order_in_json_is_answered_in_json(bus: MemoryBus, workers: list[Worker]) -> None:
    answers = [msgspec.json.decode(answer) for answer in await asked(bus, b'{"v": 1, "rules": ["drop:0.5"]}')]
    said = {"v": 1, "worker": "w1", "rules": ["drop:0.5"], "injected": {"drop": 1}, "code": "", "message": ""}
    assert said in answers


async def test_subject_that_is_no_inbox_gets_no_answer_and_order_without_one_is_taken(
    bus: MemoryBus, workers: list[Worker]
) -> None:
    payload = msgspec.msgpack.encode(Order(["raise:1"]))
    assert await asked(bus, payload, "aikoryu.v1.default.echo") == []
    await bus.connect().publish(SUBJECTS.faults, payload)
    await asyncio.sleep(0)
    names = [name for name, _ in workers[0].applied]
    assert len(names) == 2
    assert all(names)


async def test_nobody_there_is_no_answer_at_once(bus: MemoryBus) -> None:
    connection = bus.connect()
    async with asyncio.timeout(5):
        assert await inject(connection, SUBJECTS, [], 3600.0) == []
    assert connection.subscriptions == []


async def test_rules_of_the_settings_are_in_force_from_the_start(bus: MemoryBus) -> None:
    worker = Worker(bus, "w1", FaultSettings(enabled=True, rules=("drop:0.5", "die@3")))
    await worker.control.start()
    assert worker.kinds == [["drop", "die"]]


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        (FaultSettings(rules=("drop:0.5",)), Refused, "set faults.enabled=true as well"),
        (FaultSettings(enabled=True, rules=("drop:2",)), BadParameter, "use a rate"),
    ],
)
async def test_rules_of_the_settings_that_cannot_be_are_told_at_the_start(
    bus: MemoryBus, settings: FaultSettings, error: type[Exception], told: str
) -> None:
    worker = Worker(bus, "w1", settings)
    with pytest.raises(error, match=told):
        await worker.control.start()
    assert worker.applied == []


async def test_worker_that_stops_hears_nothing(bus: MemoryBus) -> None:
    worker = Worker(bus, "w1")
    await worker.control.start()
    await worker.control.stop()
    assert await inject(bus.connect(), SUBJECTS, ["raise:1"], 3600.0) == []
