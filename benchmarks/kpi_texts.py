"""Writes the sentences of `benchmarks.kpi` and what transformers makes of them, in a process without a future."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed_model import find_model, sentences
from benchmarks.kpi_cases import TOKENS
from benchmarks.peers.transformer_embed import Transformer
from benchmarks.workloads import save_texts

STEP = 256


def main(order: dict[str, Any]) -> None:
    """Carry out one order: `device`, `count` and `pool`, the file to write; all texts have as many tokens."""
    import torch

    from aikoryu.gpu.models.tokenizer import Tokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pool = Path(order["pool"])
    model, _ = find_model(pool.parent)
    texts = sentences(model, order["count"], TOKENS)
    ids = np.array(Tokenizer(model).encode(texts), np.int64)
    reference = Transformer(model.path, order["device"], "float32")
    parts = [ids[start : start + STEP] for start in range(0, len(ids), STEP)]
    save_texts(pool, texts, np.concatenate([reference.embed(reference.place(part)).cpu().numpy() for part in parts]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
