"""The same encoder in transformers: bare torch on a GPU or on every core, and exported to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEEDS = ("torch", "transformers")
ONNX_NEEDS = (*NEEDS, "onnx", "onnxruntime")

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Transformer:
    """BertModel with mean pooling, for rows of one length: nothing is padded, and no mask slows attention."""

    def __init__(self, path: Path, device: str, dtype: str) -> None:
        import torch
        from transformers import BertModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._torch = torch
        self._device = device
        model: Any = BertModel.from_pretrained(str(path), add_pooling_layer=False, attn_implementation="sdpa")
        self.model = model.to(device=device, dtype=getattr(torch, dtype)).eval()

    def place(self, ids: Ids) -> Any:
        """Token numbers on the device."""
        return self._torch.from_numpy(ids).to(self._device)

    def embed(self, ids: Any) -> Any:
        """(rows, tokens) int64 on the device to (rows, d) float32 unit vectors there."""
        with self._torch.inference_mode():
            return self.pool(self.model(input_ids=ids).last_hidden_state)

    def pool(self, hidden: Any) -> Any:
        """The mean over all tokens, of length one."""
        return self._torch.nn.functional.normalize(hidden.float().mean(1), dim=1)


def exported(path: Path, folder: Path, tokens: int, threads: int) -> Callable[[Ids], Vectors]:
    """The encoder in ONNX Runtime on the CPU, float32, with all of its graph optimizations.

    Args:
        path: the model's directory.
        folder: where the exported file goes.
        tokens: of each row.
        threads: to compute with.
    """
    import onnxruntime  # type: ignore[import-not-found]
    import torch

    encoder = Transformer(path, "cpu", "float32")
    encoder.model.set_attn_implementation("eager")

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = encoder.model

        def forward(self, ids: Any, mask: Any) -> Any:
            return encoder.pool(self.model(input_ids=ids, attention_mask=mask).last_hidden_state)

    file = folder / "encoder.onnx"
    ids = torch.ones(2, tokens, dtype=torch.int64)
    axes = {"ids": {0: "rows"}, "mask": {0: "rows"}, "vectors": {0: "rows"}}
    names: dict[str, Any] = {"input_names": ["ids", "mask"], "output_names": ["vectors"]}
    with torch.no_grad():
        torch.onnx.export(
            Whole(), (ids, torch.ones_like(ids)), str(file), **names, dynamic_axes=axes, opset_version=17, dynamo=False
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def embed(ids: Ids) -> Vectors:
        (vectors,) = session.run(None, {"ids": ids, "mask": np.ones_like(ids)})
        return np.asarray(vectors)

    return embed
