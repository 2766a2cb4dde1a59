"""A gateway: an agent in front of a language model that is asked over HTTP, as OpenAI's API and many servers have it.

Source: https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import cached_property
from typing import Any

import httpx2
import msgspec

from ..bus.errors import Declined
from .agent import Agent
from .handler import handler
from .message import Message

LONGEST_REASON = 500  # characters of what an endpoint says of an error

_DATA = "data:"
_END = "[DONE]"


class Turn(Message):
    """One message of a conversation; the role is "system", "user" or "assistant"."""

    role: str
    content: str


class Chat(Message, omit_defaults=True):
    """A conversation, whose next message the model is to write.

    Attributes:
        messages: so far.
        max_tokens: of the answer; None: what the endpoint allows.
        temperature: None: the endpoint's.
    """

    messages: list[Turn]
    max_tokens: int | None = None
    temperature: float | None = None


class Token(Message):
    """A piece of the answer."""

    text: str


class Gateway(Agent):
    """Fronts a model: `app.add(Gateway("http://127.0.0.1:8000/v1", "llama-3"), "llm", concurrency=4)`.

    No more than the agent's `concurrency` are asked of the endpoint at once; a caller that leaves ends its request.
    Errors have the codes `llm_unreachable`, `llm_busy` (ask again later), `llm_refused` and `llm_failed`.

    Args:
        url: of the API, with its version, without `/chat/completions`.
        model: as the endpoint names it.
        api_key: sent as a bearer token; empty: none.
        silence_s: longest wait for the connection, and for each piece, s.
    """

    def __init__(self, url: str, model: str, *, api_key: str = "", silence_s: float = 60.0) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._silence_s = silence_s

    @handler
    async def tokens(self, chat: Chat) -> AsyncIterator[Token]:
        """The model's answer, piece by piece."""
        async with aclosing(self._pieces(chat)) as pieces:
            async for text in pieces:
                yield Token(text)

    @handler
    async def answer(self, chat: Chat) -> str:
        """The model's answer as a whole."""
        async with aclosing(self._pieces(chat)) as pieces:
            return "".join([text async for text in pieces])

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # 15 ms: once, not for each client

    async def _pieces(self, chat: Chat) -> AsyncGenerator[str, None]:
        body = {"model": self._model, "stream": True, **msgspec.to_builtins(chat)}
        # A connection for each call: one that is left in the middle of an answer cannot serve another anyway.
        try:
            async with (
                httpx2.AsyncClient(verify=self._tls, timeout=self._silence_s, headers=self._headers) as client,
                client.stream("POST", self._url, json=body) as response,
            ):
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread(), response.headers.get("retry-after"))
                async for line in response.aiter_lines():
                    if not line.startswith(_DATA):
                        continue
                    data = line.removeprefix(_DATA).strip()
                    if data == _END:
                        return
                    if text := _text(data):
                        yield text
            raise Declined("llm_failed", "the endpoint ended in the middle of an answer: ask again")
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise Declined("llm_unreachable", f"{self._url}: {error}: see that it runs, and its address") from error
        except httpx2.TimeoutException as error:
            raise Declined("llm_failed", f"{self._url} was silent for {self._silence_s:g} s: ask again") from error
        except httpx2.HTTPError as error:
            raise Declined("llm_failed", f"{self._url}: {error or type(error).__name__}: ask again") from error


def _text(data: str) -> str:
    """What an event adds to the answer.

    Raises:
        Declined: it is none of the API's, or says that the model failed.
    """
    try:
        event: dict[str, Any] = msgspec.json.decode(data)
        if "error" in event:
            raise Declined("llm_failed", f"the endpoint failed: {_reason(event['error'])}")
        choices = event["choices"]
        return (choices[0]["delta"].get("content") or "") if choices else ""
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError) as error:
        raise Declined("llm_failed", f"the endpoint answered with what is no event of a chat ({error})") from error


def _refusal(status: int, body: bytes, retry_after: str | None) -> Declined:
    """What callers are told of an answer that is none."""
    try:
        reason = _reason(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, LookupError, TypeError):
        reason = body.decode(errors="replace")[:LONGEST_REASON]
    said = f"the endpoint answered {status}: {reason or 'no reason given'}"
    if status in (429, 503):
        return Declined("llm_busy", f"{said}; ask again {f'in {retry_after} s' if retry_after else 'later'}")
    return Declined("llm_failed" if status >= 500 else "llm_refused", said)


def _reason(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:LONGEST_REASON]
