"""Taking jobs off a consumer, over the in-memory bus; `test_jobs.py` does so against a server."""

from __future__ import annotations

from aikoryu.bus.job_puller import Puller
from aikoryu.bus.memory import MemoryBus
from aikoryu.bus.pipeline import Pipeline
from aikoryu.bus.transport import Message


async def test_job_under_way_when_it_stops_is_taken_to_be_given_back() -> None:
    """Unheard it would rest with the server until `jobs.ack_wait_s` had passed."""
    bus = MemoryBus()
    worker, server = bus.connect("_WORKER"), bus.connect()
    inboxes: list[str] = []
    taken: list[bytes] = []

    def took(message: Message, puller: Puller) -> None:
        taken.append(message.data)

    await server.subscribe("$JS.API.CONSUMER.MSG.NEXT.jobs.echo", lambda asked: inboxes.append(asked.reply))
    async with Pipeline(worker) as pipeline:
        puller = Puller(worker, pipeline, ("jobs", "echo"), 8, took, lambda: None)
        await puller.start()
        puller.resume()
        await worker.flush()
        await server.publish(inboxes[0], b"job")
        await puller.stop()
        assert taken == [b"job"]
        await server.publish(inboxes[0], b"later")
        await worker.flush()
    assert taken == [b"job"]
    assert len(inboxes) == 1, "it asks for nothing more"
