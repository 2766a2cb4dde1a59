"""Sentences from token numbers to vectors, in this process: ours, transformers on the device and on the CPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aikoryu.gpu.models.store import Model
from benchmarks import record
from benchmarks.ours import NAME
from benchmarks.peers import sentence_encode, transformer_embed
from benchmarks.record import Samples
from benchmarks.stopwatch import seconds_each

BARE = "transformers, fp16"
CPU_SHAPE, TEXT_SHAPE = "cpu", "encode"
LARGEST = 4096
STREAMS = 3  # batches on the way, as an engine has them
COSINE = 0.999

Ids = NDArray[np.int64]


def shape(rows: int) -> str:
    """Its name in the record."""
    return f"ids{rows}"


def batches(device: str) -> tuple[int, ...]:
    """Sentences of one batch."""
    return (1, 64, 256, 1024, LARGEST) if device != "cpu" else (8, 64)


class Ours:
    """The encoder that `models.embed` has, without what is around it."""

    def __init__(self, model: Model, device: str) -> None:
        import torch

        from aikoryu.gpu.models.bert import Bert
        from aikoryu.gpu.models.pooling import mean

        self._torch = torch
        self._device = device
        place = torch.device(device)
        self._run: Callable[[Any], Any]
        with torch.inference_mode():
            if device == "cpu":
                bert = Bert(model, place, torch.float32)

                def run(ids: Ids) -> Any:
                    lengths = torch.full((len(ids),), ids.shape[1])
                    (hidden,) = bert([(torch.from_numpy(ids), lengths)], lambda _: True)
                    assert hidden is not None, "no row was dropped"
                    return mean(hidden, lengths)

                self._run = run
            else:
                from aikoryu.gpu.models.graphs import Graphs

                half = Bert(model, place, torch.float16)
                graphs = Graphs(half, model.dimension, model.max_tokens, place)
                self._run = lambda ids: graphs(ids, lambda _: True)
        self._dimension = model.dimension

    def embed(self, ids: Ids) -> Any:
        """(rows, tokens) to (rows, d) float32 on the device."""
        with self._torch.inference_mode():
            return self._run(ids if self._device == "cpu" else ids.tolist())

    def rate(self, sets: Sequence[Ids], least_s: float) -> float:
        """Sentences/s with as many batches on the way as an engine has, token numbers and vectors on the host."""
        if self._device == "cpu":
            return len(sets[0]) / seconds_each(lambda: self.embed(sets[0]), "cpu", least_s)
        torch, rows = self._torch, len(sets[0])
        lists = [ids.tolist() for ids in sets]  # as a tokenizer gives them
        streams = [torch.cuda.Stream() for _ in range(STREAMS)]
        hosts = [torch.empty(rows, self._dimension, pin_memory=True) for _ in streams]

        def work(turn: int) -> None:
            stream = streams[turn % STREAMS]
            stream.synchronize()
            with torch.cuda.stream(stream), torch.inference_mode():
                hosts[turn % STREAMS].copy_(self._run(lists[turn % len(lists)]), non_blocking=True)

        for turn in range(2 * STREAMS):
            work(turn)
        torch.cuda.synchronize()
        start, turn = time.perf_counter(), 0
        while time.perf_counter() - start < least_s:
            work(turn)
            turn += 1
        torch.cuda.synchronize()
        return turn * rows / (time.perf_counter() - start)


def random_ids(rows: int, tokens: int) -> Ids:
    """Fresh token numbers, the special ones around them as a tokenizer sets them."""
    ids = np.random.default_rng().integers(1000, 29_000, (rows, tokens), dtype=np.int64)
    ids[:, 0], ids[:, -1] = 101, 102
    return ids


def measure(
    model: Model, device: str, tokens: int, rounds: int, least_s: float, samples: Samples, shapes: dict[str, Any]
) -> dict[str, str]:
    """Add the rounds of ours and of bare torch on the device, for each batch; what did not run, with the reason."""
    if missing := missing_of(transformer_embed.NEEDS):
        return {BARE: missing}
    ours = Ours(model, device)
    bare = transformer_embed.Transformer(model.path, device, "float32" if device == "cpu" else "float16")
    for rows in batches(device):
        shapes[shape(rows)] = {"title": f"{rows:,} sentences of {tokens} tokens a batch, from token ids", "rows": rows}
        sets = [random_ids(rows, tokens) for _ in range(6)]
        wrong = wrong_vectors(ours.embed(sets[0]).cpu().numpy(), bare.embed(bare.place(sets[0])).cpu().numpy())
        by = samples.setdefault(shape(rows), {})
        place = bare.place(sets[1])
        for _ in range(rounds):
            rate = ours.rate(sets, least_s)
            by.setdefault(NAME, []).append(record.sample(wrong, rows_per_s=round(rate, 1)))
            rate = rows / seconds_each(lambda place=place: bare.embed(place), device, least_s)  # type: ignore[misc]
            by.setdefault(BARE, []).append(record.sample(rows_per_s=round(rate, 1)))
        _say(f"{rows} sentences a batch")
    return {}


def measure_cpu(
    model: Model, tokens: int, least_s: float, samples: Samples, shapes: dict[str, Any], folder: Path
) -> dict[str, str]:
    """Add one round of every way on the CPU and every batch, all cores each; what did not run, with the reason."""
    cores = len(os.sched_getaffinity(0))
    sizes = (16, 64, 256) if cores > 4 else (8,)
    shapes[CPU_SHAPE] = {"title": f"sentences of {tokens} tokens on {cores} cores, from token ids"}
    by = samples.setdefault(CPU_SHAPE, {})
    skipped: dict[str, str] = {}

    def torch_of(dtype: str) -> Callable[[Ids], Any]:
        made = transformer_embed.Transformer(model.path, "cpu", dtype)
        return lambda ids: made.embed(made.place(ids))

    ways: dict[str, tuple[Sequence[str], Callable[[], Callable[[Ids], Any]]]] = {
        "torch f32": (transformer_embed.NEEDS, lambda: torch_of("float32")),
        "torch bf16": (transformer_embed.NEEDS, lambda: torch_of("bfloat16")),
        "ONNX Runtime": (
            transformer_embed.ONNX_NEEDS,
            lambda: transformer_embed.exported(model.path, folder, tokens, cores),
        ),
    }
    for name, (needs, make) in ways.items():
        if missing := missing_of(needs):
            skipped[name] = missing
            continue
        try:
            run = make()
        except Exception as error:  # an exporter may raise anything
            skipped[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        for rows in sizes:
            ids = random_ids(rows, tokens)
            rate = rows / seconds_each(lambda ids=ids, run=run: run(ids), "cpu", least_s)  # type: ignore[misc]
            by[f"{name}, batch {rows}"] = [record.sample(rows_per_s=round(rate, 1))]
            _say(f"{name}, batch {rows}: {rate:,.0f}/s")
    return skipped


def measure_encode(
    model: Model, device: str, texts: list[str], rounds: int, samples: Samples, shapes: dict[str, Any]
) -> dict[str, str]:
    """Add the rounds of `encode`, in both precisions and every batch; what did not run, with the reason."""
    if missing := missing_of(sentence_encode.NEEDS):
        return {"sentence-transformers": missing}
    shapes[TEXT_SHAPE] = {"title": f"sentence-transformers' encode of {len(texts):,} texts, same device"}
    by = samples.setdefault(TEXT_SHAPE, {})
    for half in (True, False) if device != "cpu" else (False,):
        encoder = sentence_encode.encoder(model.path, device, half)
        for size in (32, 256, 1024) if device != "cpu" else (32,):
            name = f"encode {'fp16' if half else 'default'}, batch {size}"
            sentence_encode.encode(encoder, texts[: 2 * size], size)
            for _ in range(rounds):
                start = time.perf_counter()
                sentence_encode.encode(encoder, texts, size)
                rate = len(texts) / (time.perf_counter() - start)
                by.setdefault(name, []).append(record.sample(rows_per_s=round(rate, 1)))
            _say(f"{name}: {rate:,.0f}/s")
    return {}


def wrong_vectors(found: NDArray[np.float32], expected: NDArray[np.float32]) -> int:
    """Rows whose cosine to the expected ones is below 0.999."""
    return int((np.einsum("ij,ij->i", found, expected) < COSINE).sum())


def missing_of(needs: Sequence[str]) -> str:
    """Which of these distributions are not installed, as a reason; empty if all are."""
    missing = []
    for name in needs:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return f"not installed: {', '.join(missing)}" if missing else ""


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
