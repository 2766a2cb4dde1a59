"""What of the embedding benchmark one process does alone: from ids, the CPU, `encode`, and the texts for the rest."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import device_run, embed_ids
from benchmarks.embed_model import find_model, sentences
from benchmarks.peers.transformer_embed import Transformer
from benchmarks.record import Samples
from benchmarks.workloads import save_texts

FOUND, POOL = "alone.json", "texts.json"
TOKENS = 24
EXPECTED_ROWS = 256


def main(order: dict[str, Any]) -> None:
    """Carry out one order (`device`, `quick`, `rounds`, `folder`); leave the samples and the texts in the folder."""
    import torch

    from aikoryu.gpu.models.tokenizer import Tokenizer

    device, quick, rounds, folder = order["device"], order["quick"], order["rounds"], Path(order["folder"])
    cuda = device != "cpu"
    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, _ = find_model(folder)
    samples: Samples = {}
    shapes: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    texts = sentences(model, 4096 if cuda else 64, TOKENS)
    expected = Transformer(model.path, device, "float32")
    ids = np.array(Tokenizer(model).encode(texts), np.int64)
    steps = range(0, len(ids), EXPECTED_ROWS)
    vectors = [expected.embed(expected.place(ids[start : start + EXPECTED_ROWS])).cpu().numpy() for start in steps]
    save_texts(folder / POOL, texts, np.concatenate(vectors))
    with device_run.guarded("from ids", skipped):
        skipped |= embed_ids.measure(model, device, TOKENS, rounds, 0.1 if quick else 0.3, samples, shapes)
    with device_run.guarded("all cores", skipped):
        cpu_s = 1.5 if cuda and not quick else 0.3
        skipped |= embed_ids.measure_cpu(model, TOKENS, cpu_s, samples, shapes, folder)
    with device_run.guarded("encode", skipped):
        skipped |= embed_ids.measure_encode(model, device, texts, rounds, samples, shapes)
    found = {"samples": samples, "shapes": shapes, "skipped": skipped}
    (folder / FOUND).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
