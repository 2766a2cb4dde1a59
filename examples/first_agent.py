"""A first agent: everything it asks is answered from a batch shared with all others.

Run `aikoryu up` in one terminal and `python examples/first_agent.py` in another.
"""

import asyncio
import sys

import numpy as np

import aikoryu

SENTENCES = ["The server is on fire.", "A fire broke out in the data centre.", "I had soup for lunch."]


async def main(url: str | None = None) -> None:
    async with aikoryu.connect(url) as bus:
        # One sentence, one vector. A thousand agents may do this in the same moment.
        vector = await bus.models.embed(SENTENCES[0])
        print("embedding:", vector.shape, vector.dtype)

        # Several at once: similarity is the dot product, for every vector is of length 1.
        vectors = await bus.models.embed(SENTENCES)
        for sentence, cosine in zip(SENTENCES, vectors @ vectors[0], strict=True):
            print(f"similarity {cosine:.2f}: {sentence}")

        # Calls are awaitables, so many of them wait together.
        matrices = [np.full((2, 2), n, np.float32) for n in range(3)]
        products = await asyncio.gather(*(bus.matrix.matmul(matrix, matrix) for matrix in matrices))
        print("products:", [product.tolist() for product in products])

        # Any operation, a thousand rows, one array in and one out.
        answer = await bus.call_many("matrix.add", {"a": np.ones((1000, 8)), "b": np.ones((1000, 8))})
        print("sums:", answer["c"].shape, answer["c"].sum())

        # A stream: chunk after chunk, answers in order, no more under way than the worker grants.
        chunks = ({"x": np.arange(4) + 10 * n} for n in range(3))
        async for part in bus.stream("echo", chunks):
            print("part:", part["x"].tolist())

        # What is wrong is said by an exception that tells what to change.
        try:
            await bus.matrix.matmul(np.ones((2, 3)), np.ones((2, 3)))
        except aikoryu.BadColumn as error:
            print("refused:", error)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
