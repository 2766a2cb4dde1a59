"""A client without Aikoryu: nats-py and msgpack, as any language has them. `by_hand.md` does it without code.

Run `aikoryu up` in one terminal and, after `pip install nats-py msgpack`, `python examples/plain_client.py` in another.

A frame is one MessagePack map. A column of fixed width is its type, its shape (rows first) and its bytes, little-endian
and in C order; a column of text is the bytes of all rows and the offsets between them.
"""

import asyncio
import struct
import sys

import msgpack
import nats


async def main(url: str = "nats://127.0.0.1:4222") -> None:
    connection = await nats.connect(url, error_cb=give_up)
    try:
        # One row: one request, one reply.
        a, b = (1.0, 2.0, 3.0, 4.0), (0.0, 1.0, 1.0, 0.0)
        frame = {
            "v": 1,
            "n": 1,
            "cols": {
                "a": {"t": "f4", "s": [1, 2, 2], "d": struct.pack("<4f", *a)},
                "b": {"t": "f4", "s": [1, 2, 2], "d": struct.pack("<4f", *b)},
            },
        }
        message = await connection.request("aikoryu.v1.default.matrix.matmul", msgpack.packb(frame), timeout=10)
        product = msgpack.unpackb(message.data)["cols"]["c"]
        print("product:", struct.unpack("<4f", product["d"]), "of shape", product["s"][1:])

        # Many rows: replies may come in parts and in any order. `at` says which rows a part holds, as runs of
        # [first, count], and `last` that none follows. What is empty or false is left out.
        texts = [text.encode() for text in ("one", "two", "three")]
        ends = [sum(map(len, texts[:count])) for count in range(len(texts) + 1)]
        frame = {
            "v": 1,
            "n": len(texts),
            "ttl_ms": 10_000,
            "cols": {"text": {"t": "utf8", "o": struct.pack(f"<{len(ends)}I", *ends), "d": b"".join(texts)}},
        }
        inbox = connection.new_inbox()
        replies = await connection.subscribe(inbox)
        subject = "aikoryu.v1.default.models.embed.all-MiniLM-L6-v2"
        await connection.publish(subject, msgpack.packb(frame), reply=inbox)
        last = False
        while not last:
            reply = msgpack.unpackb((await replies.next_msg(timeout=10)).data)
            last = reply.get("last", False)
            for error in reply.get("err", []):
                print("row", error["row"], error["code"], error["msg"])
            for first, count in reply.get("at", []):
                print("rows", list(range(first, first + count)), "embedded by", reply["by"]["engine"])
    finally:
        await connection.close()


async def give_up(error: Exception) -> None:
    sys.exit(f"{error!r}: start `aikoryu up` in another terminal")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
