"""Sentences of 24 tokens on a GPU host: from token ids, from text over NATS, against the CPU and `encode`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import device_goals, device_run, embed_alone, embed_ids
from benchmarks.embed_model import TRAINED, find_model
from benchmarks.harness import entrants
from benchmarks.ours_echo_device import DEVICE_VARIABLE
from benchmarks.ours_embed_device import DIRECTORY_VARIABLE
from benchmarks.peers import transformer_embed
from benchmarks.processes import ROOT, raise_file_limit
from benchmarks.record import Samples
from benchmarks.shapes import Shape
from benchmarks.standing import run_standing

MODULES = ("benchmarks.ours_embed_device",)
ALONE_LIMIT_S = 150.0
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
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, kind = find_model(folder)
        os.environ[DEVICE_VARIABLE] = device
        os.environ[DIRECTORY_VARIABLE] = "" if kind == TRAINED else name
        # This process starts many others, and so stays without torch and its threads.
        alone = _alone({"device": device, "quick": quick, "rounds": rounds, "folder": name}, skipped)
        samples: Samples = alone["samples"]
        described: dict[str, Any] = alone["shapes"]
        skipped |= alone["skipped"]
        cores = len(os.sched_getaffinity(0))
        chosen = shapes(max(2, min(8, cores // 2)), folder / embed_alone.POOL, device != "cpu")
        chosen = [shape for shape in chosen if not options.shapes or shape.name in options.shapes]
        able, missing = entrants(MODULES)
        if quick:
            able = [(module, one) for module, one in able if one.name != device_goals.TWO]
        seconds = options.seconds or (1.0 if quick else 2.0)
        over_nats, failed = asyncio.run(run_standing(able, chosen, rounds, seconds, device))
    samples |= over_nats
    described |= {
        s.name: s.as_dict() | {"rows_in_flight": s.rows_in_flight, "workload": f"{embed_alone.TOKENS} tokens"}
        for s in chosen
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


def _alone(order: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    """What one process does without the bus, as a process of its own; nothing if it fails."""
    with device_run.guarded("without the bus", skipped):
        subprocess.run(
            (sys.executable, "-m", "benchmarks.embed_alone", json.dumps(order)),
            cwd=ROOT,
            check=True,
            timeout=ALONE_LIMIT_S,
        )
        found: dict[str, Any] = json.loads(Path(order["folder"], embed_alone.FOUND).read_text())
        return found
    return {"samples": {}, "shapes": {}, "skipped": {}}
