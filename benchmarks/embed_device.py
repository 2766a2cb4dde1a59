"""Sentences of 24 tokens on a GPU host: from token ids, from text over NATS, against the CPU and `encode`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from aikoryu.gpu.models.store import Model
from aikoryu.gpu.models.tokenizer import Tokenizer
from benchmarks import device_goals, device_run, embed_ids
from benchmarks.embed_model import TRAINED, find_model, sentences
from benchmarks.harness import entrants
from benchmarks.ours_echo_device import DEVICE_VARIABLE
from benchmarks.ours_embed_device import DIRECTORY_VARIABLE
from benchmarks.peers import transformer_embed
from benchmarks.processes import raise_file_limit
from benchmarks.record import Samples
from benchmarks.shapes import Shape
from benchmarks.standing import run_standing
from benchmarks.workloads import save_texts

MODULES = ("benchmarks.ours_embed_device",)
TOKENS = 24
BASELINE = embed_ids.BARE
TEXTS_A_CALL = 256


def shapes(processes: int, pool: Path, cuda: bool) -> list[Shape]:
    """The shapes over NATS."""
    texts = str(pool)
    rows, callers, alone = (TEXTS_A_CALL, 4, 256) if cuda else (32, 1, 16)
    many = f"{processes} processes × {callers} call_many({rows} texts)"
    return [
        Shape("texts", many, processes, callers=callers, rows_per_call=rows, workload=texts, ramp_s=0.5),
        Shape(
            "sentences",
            f"{processes} processes × {alone} awaited texts",
            processes,
            callers=alone,
            workload=texts,
            ramp_s=0.5,
        ),
        Shape("text64", "64 callers awaiting a text each", callers=64, workload=texts),
    ]


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables, write the record."""
    device, quick = options.device, options.quick
    rounds = options.rounds or (2 if quick else 5)
    raise_file_limit()
    samples: Samples = {}
    described: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, kind = find_model(folder)
        os.environ[DEVICE_VARIABLE] = device
        os.environ[DIRECTORY_VARIABLE] = "" if kind == TRAINED else str(folder)
        pool = folder / "texts.json"
        skipped = _in_process(model, options, rounds, samples, described, folder, pool)
        gc.collect()
        _empty_cache(device)
        cores = len(os.sched_getaffinity(0))
        chosen = shapes(max(2, min(8, cores // 2)), pool, device != "cpu")
        chosen = [shape for shape in chosen if not options.shapes or shape.name in options.shapes]
        able, missing = entrants(MODULES)
        if quick:
            able = [(module, one) for module, one in able if one.name != device_goals.TWO]
        seconds = options.seconds or (1.0 if quick else 2.0)
        over_nats, failed = asyncio.run(run_standing(able, chosen, rounds, seconds, device))
    samples |= over_nats
    described |= {
        s.name: s.as_dict() | {"rows_in_flight": s.rows_in_flight, "workload": f"{TOKENS} tokens"} for s in chosen
    }
    device_run.finish(
        "embed",
        options,
        samples,
        baseline=BASELINE,
        shapes=described,
        distributions=[
            "numpy",
            "torch",
            "tokenizers",
            "uvloop",
            *transformer_embed.ONNX_NEEDS,
            "sentence-transformers",
        ],
        skipped=skipped | missing | failed,
        judged=device_goals.EMBED_GOALS,
        more={"model": kind},
    )


def _in_process(
    model: Model,
    options: argparse.Namespace,
    rounds: int,
    samples: Samples,
    described: dict[str, Any],
    folder: Path,
    pool: Path,
) -> dict[str, str]:
    """What runs in this process, and the texts for those that do not; what was skipped, with the reason."""
    import torch

    device, quick = options.device, options.quick
    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    least_s = 0.1 if quick else 0.3
    cuda = device != "cpu"
    skipped = embed_ids.measure(model, device, TOKENS, rounds, least_s, samples, described)
    cpu_s = 1.5 if cuda and not quick else 0.3
    skipped |= embed_ids.measure_cpu(model, TOKENS, cpu_s, samples, described, folder)
    texts = sentences(model, 4096 if cuda else 64, TOKENS)
    skipped |= embed_ids.measure_encode(model, device, texts, rounds, samples, described)
    expected = transformer_embed.Transformer(model.path, device, "float32")
    ids = np.array(Tokenizer(model).encode(texts), np.int64)
    steps = range(0, len(ids), 256)
    vectors = [expected.embed(expected.place(ids[start : start + 256])).cpu().numpy() for start in steps]
    save_texts(pool, texts, np.concatenate(vectors))
    return skipped


def _empty_cache(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
