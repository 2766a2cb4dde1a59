import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from aikoryu.cli.chaos.proxy import Proxy


@asynccontextmanager
async def through_proxy() -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that echoes, through a proxy."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        try:
            yield proxy, reader, writer
        finally:
            writer.transport.abort()


async def test_what_comes_is_passed_on_both_ways() -> None:
    async with through_proxy() as (_, reader, writer):
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"


async def test_a_stalled_proxy_is_silent_until_it_is_mended() -> None:
    async with through_proxy() as (proxy, reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.stall()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(3), 0.05)
        proxy.mend()
        assert await reader.readexactly(3) == b"two"


async def test_a_cut_resets_connections() -> None:
    async with through_proxy() as (proxy, reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


def test_a_cut_of_what_is_stalled_ends_quietly() -> None:
    complaints: list[dict[str, object]] = []

    async def stalled() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with through_proxy() as (proxy, reader, writer):
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            proxy.stall()
            writer.write(b"two")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readexactly(3), 0.05)
            proxy.cut()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            proxy.mend()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gc.collect()

    uvloop.run(stalled())
    assert complaints == []


async def test_no_server_is_no_connection() -> None:
    async with Proxy("nats://127.0.0.1:1") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.transport.abort()
