"""A gateway to a language model: tokens are passed on as they come, and the model is let go when the reader leaves.

    python examples/gateway.py                      # starts a server of its own, and a model that only pretends
    python examples/gateway.py --nats nats://host   # on a server that runs already

The gateway needs `pip install 'aikoryu[gateway]'`. Whoever is on the bus may ask it, and none needs the model's address
or its key. The model listens on 127.0.0.1 and speaks as OpenAI's chat completions do, so a real one can take its place.
"""

import argparse
import asyncio
import json
from contextlib import AsyncExitStack, aclosing

import aikoryu as ai
from aikoryu.agents.gateway import Chat, Gateway, Turn
from aikoryu.bus.server import EmbeddedServer
from aikoryu.config import ServerSettings


class PretendedModel:
    """Counts: a token every 10 ms. `ended` has a line for each answer."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked = json.loads(await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0])))
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
        host, port = endpoint.sockets[0].getsockname()
        # Four at once, for that is what the model takes; sixteen wait, and whoever comes then is told `busy`.
        app.add(Gateway(f"http://{host}:{port}/v1", "pretended"), "llm", concurrency=4, mailbox=16)
        bus = await stack.enter_async_context(app)
        llm = bus.agents.get("llm", Gateway)

        print("A patient reader: ", end="")
        async for token in llm.tokens.stream(Chat([Turn("user", "Count to ten.")], max_tokens=10)):
            print(token.text, end="", flush=True)
        print("\nThe model is", await model.ended.get())

        print("A hasty one: ", end="")
        async with aclosing(llm.tokens.stream(Chat([Turn("user", "Count!")], max_tokens=1_000_000))) as tokens:
            async for token in tokens:
                print(token.text, end="", flush=True)
                if token.text.strip() == "3":
                    break  # out of `aclosing` too, which ends the stream at once
        print("\nThe model is", await model.ended.get())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", metavar="URL", default="", help="a server that runs already")
    asyncio.run(main(parser.parse_args().nats))
