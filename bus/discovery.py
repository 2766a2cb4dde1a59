"""Discovery: workers answer `$SRV.PING|INFO|STATS` as every NATS service does, so `nats micro ls` sees them.

Source: NATS ADR-32, service API.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from .outgoing import Outgoing
from .service import Endpoint, Service
from .subjects import queue_group
from .transport import Message, Subscription, Transport

NAME = "aikoryu"  # of workers, as a service
AGENTS = "aikoryu-agents"  # of processes that have agents
KEEPERS = "aikoryu-context"  # of processes that keep context graphs
LONGEST_ERROR = 200  # characters of `last_error`; a caller's own text may be in it
_TYPE = "io.nats.micro.v1.{}_response"

Details = Callable[[str], dict[str, Any]]


class Discovery:
    """Answers for one service instance.

    Args:
        transport: the worker's connection.
        service: whose endpoints and statistics are told.
        instance: this worker's id, unique on the bus.
        version: SemVer of the service.
        details: gives, for an operation, figures of its own to add to its statistics.
        service_name, description: what it is, as a service.
    """

    def __init__(
        self,
        transport: Transport,
        service: Service,
        instance: str,
        version: str,
        details: Details,
        *,
        service_name: str = NAME,
        description: str = "Aikoryu worker: batches agents' requests for a device",
    ) -> None:
        self._transport = transport
        self._service = service
        self._details = details
        self._started = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._outgoing = Outgoing(transport)
        self._description = description
        self._identity = {"name": service_name, "id": instance, "version": version, "metadata": {}}
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Answer to everybody, to those who name the service, and to those who name this instance."""
        identity = self._identity
        answers = {"PING": dict, "INFO": self._info, "STATS": self._stats}
        for verb, answer in answers.items():
            named = f"$SRV.{verb}.{identity['name']}"
            for subject in (f"$SRV.{verb}", named, f"{named}.{identity['id']}"):
                self._subscriptions.append(await self._transport.subscribe(subject, self._answering(verb, answer)))

    async def stop(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self._outgoing.drain()

    def _answering(self, verb: str, answer: Callable[[], dict[str, Any]]) -> Callable[[Message], None]:
        def on_message(message: Message) -> None:
            # A reply subject is anyone's to choose: an answer to an operation's would be a request of the worker.
            if message.reply and self._service.may_answer(message.reply):
                body = {"type": _TYPE.format(verb.lower()), **self._identity, **answer()}
                self._outgoing.send(message.reply, self._fitting(body))

        return on_message

    def _fitting(self, body: dict[str, Any]) -> bytes:
        """A body as the server takes it: of too many endpoints without what is told of each, then only the first."""
        payload = msgspec.json.encode(body)
        most = self._transport.max_payload
        if len(payload) > most:
            for endpoint in body["endpoints"]:
                endpoint["metadata"] = {}
            payload = msgspec.json.encode(body)
        if len(payload) > most:
            told = len(body["endpoints"]) * most // len(payload)
            payload = msgspec.json.encode({**body, "endpoints": body["endpoints"][: told // 2]})
        return payload

    def _info(self) -> dict[str, Any]:
        endpoints = [
            {**_address(endpoint), "metadata": endpoint.metadata} for endpoint in self._service.endpoints.values()
        ]
        return {"description": self._description, "endpoints": endpoints}

    def _stats(self) -> dict[str, Any]:
        endpoints = [self._figures(endpoint) for endpoint in self._service.endpoints.values()]
        return {"started": self._started, "endpoints": endpoints}

    def _figures(self, endpoint: Endpoint) -> dict[str, Any]:
        answered = max(1, endpoint.answered)
        return {
            **_address(endpoint),
            "num_requests": endpoint.requests,
            "num_errors": endpoint.errors,
            "last_error": endpoint.last_error[:LONGEST_ERROR],
            "processing_time": int(endpoint.processing_s * 1e9),
            "average_processing_time": int(endpoint.processing_s * 1e9 / answered),
            "data": self._details(endpoint.name),
        }


def instance_name(given: str = "") -> str:
    """What a process is called on the bus: what its settings say, else its host and number, and some random digits."""
    return given or f"{socket.gethostname().replace('.', '-')}-{os.getpid()}-{secrets.token_hex(2)}"


async def discover(transport: Transport, wait_s: float, service_name: str = NAME) -> list[dict[str, Any]]:
    """Ask every worker on the bus, or whoever else is of a service's name, for its identity, endpoints and statistics.

    Returns:
        One map a worker that answered within `wait_s` seconds: the fields of STATS, each endpoint with the metadata
        of INFO.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    inbox = f"{transport.inbox_prefix}.discover"

    def on_answer(message: Message) -> None:
        body = _answer(message.data)
        if body is not None and body.get("name") == service_name:
            found[body["type"], body["id"]] = body

    subscription = await transport.subscribe(inbox, on_answer)
    for verb in ("STATS", "INFO"):
        await transport.publish(f"$SRV.{verb}.{service_name}", b"", inbox)
    await asyncio.sleep(wait_s)
    await subscription.unsubscribe()
    workers = [body for (kind, _), body in found.items() if kind == _TYPE.format("stats")]
    for worker in workers:
        info = found.get((_TYPE.format("info"), worker["id"]), {})
        metadata = {endpoint["name"]: endpoint.get("metadata") or {} for endpoint in info.get("endpoints", [])}
        for endpoint in worker["endpoints"]:
            endpoint["metadata"] = metadata.get(endpoint["name"], {})
    return sorted(workers, key=lambda worker: str(worker["id"]))


def _answer(payload: bytes) -> dict[str, Any] | None:
    """What a service told of itself; None if it is nothing that the standard knows: anybody may answer."""
    try:
        body: dict[str, Any] = msgspec.json.decode(payload, type=dict[str, Any])
        msgspec.convert(body, _Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return body


class _Named(msgspec.Struct):
    name: str


class _Answer(msgspec.Struct):
    type: str
    id: str
    endpoints: list[_Named]


def _address(endpoint: Endpoint) -> dict[str, str]:
    # ADR-32 admits letters, digits, - and _ in an endpoint's name.
    name = endpoint.name.replace(".", "-")
    return {"name": name, "subject": endpoint.subject, "queue_group": queue_group(endpoint.name)}
