"""A gateway to a language model: tokens are passed on as they come, and the model is let go when the reader leaves.

    python examples/gateway.py                      # starts a server of its own, and a model that only pretends
    python examples/gateway.py --nats nats://host   # on a server that runs already

The model listens on 127.0.0.1 and speaks as OpenAI's chat completions do, so it can be replaced by a real one.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import aikoryu as ai
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings


class Prompt(ai.Message):
    text: str
    max_tokens: int = 64


class Gateway(ai.Agent):
    """Stands before one model: whoever is on the bus may ask, and none of them needs its address or its key."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    @ai.handler(deadline_s=10.0, priority="interactive")  # for each token, not for all of them
    async def complete(self, prompt: Prompt) -> AsyncIterator[str]:
        messages = [{"role": "user", "content": prompt.text}]
        body = json.dumps({"messages": messages, "max_tokens": prompt.max_tokens, "stream": True}).encode()
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        except OSError as error:
            raise ai.Declined("model_down", f"the model cannot be reached: {error}") from None
        try:
            writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            status = (await reader.readline()).split()[1:2]
            if status != [b"200"]:
                raise ai.Declined("model_failed", f"the model answered with status {status}")
            async for line in reader:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]["content"]
        finally:
            writer.close()  # reached when the reader leaves, too: the model sees that, and stops


class PretendedModel:
    """Counts: a token every 10 ms. `ended` has a line for each answer."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked = json.loads(await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0])))
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        left = asyncio.ensure_future(reader.read())  # ends when the other side closes
        made = 0
        while made < asked["max_tokens"] and not left.done():
            made += 1
            token = {"choices": [{"delta": {"content": f"{made} "}}]}
            writer.write(b"data: %b\n\n" % json.dumps(token).encode())
            await asyncio.wait({left}, timeout=0.01)
        writer.write(b"data: [DONE]\n\n")
        writer.close()
        self.ended.put_nowait(f"{'let go' if left.done() else 'done'} after {made} of {asked['max_tokens']} tokens")
        left.cancel()


async def main(url: str) -> None:
    async with AsyncExitStack() as stack:
        if not url:
            url = (await stack.enter_async_context(EmbeddedServer(ServerSettings(port=0)))).url
        model = PretendedModel()
        endpoint = await stack.enter_async_context(await asyncio.start_server(model.answer, "127.0.0.1", 0))

        app = ai.App(url)
        # Four at once, for that is what the model takes; sixteen wait, and whoever comes then is told `busy`.
        app.add(Gateway(*endpoint.sockets[0].getsockname()), "gateway", concurrency=4, mailbox=16)
        bus = await stack.enter_async_context(app)
        gateway = bus.agents.get("gateway", Gateway)

        print("A patient reader: ", end="")
        async for token in gateway.complete.stream(Prompt(text="Count to ten.", max_tokens=10)):
            print(token, end="", flush=True)
        print("\nThe model is", await model.ended.get())

        print("A hasty one: ", end="")
        async with aclosing(
            gateway.complete.stream(Prompt(text="Count to a million.", max_tokens=1_000_000))
        ) as tokens:
            async for token in tokens:
                print(token, end="", flush=True)
                if token.strip() == "3":
                    break  # out of `aclosing` too, which ends the stream at once
        print("\nThe model is", await model.ended.get())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", metavar="URL", default="", help="a server that runs already")
    asyncio.run(main(parser.parse_args().nats))
