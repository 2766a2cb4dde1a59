"""MiniLM sentence embeddings: `python -m benchmarks.embed --rounds 3 --seconds 15 --threads 2 --json OUT`.

With `--device cuda` another shape of it is measured, that of a GPU host: see `embed_device.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

from benchmarks import device_run, embed_device, goals, minilm, record
from benchmarks.harness import entrants, run_rounds
from benchmarks.ours import NAME
from benchmarks.shapes import Shape
from benchmarks.workloads import save_texts

MODULES = ("benchmarks.ours_embed", "benchmarks.peers.inprocess_embed", "benchmarks.peers.mosec_embed")
BASELINE = "mosec-sorted-b64-w2"
# Not tuned yet: batch and wait of each are a first guess until a run with --tune says which does best.
CHOSEN = (NAME, "in-process-b8", "in-process-b16", "mosec-padded-b32-w2", "mosec-sorted-b64-w2")
POOL = 256
CALLERS = 64
EXPECTED_CHUNK = 16


def embed_shapes(folder: Path) -> list[Shape]:
    """The shapes, with their text pools and expected vectors written to `folder`."""
    encoder = minilm.Encoder()
    pools = {}
    for name, shortest, longest in (("equal", 16, 16), ("mixed", 4, 128)):
        texts = minilm.sentences(POOL, shortest, longest, seed=shortest)
        pools[name] = str(folder / f"{name}.json")
        save_texts(Path(pools[name]), texts, encoder.embed(texts, EXPECTED_CHUNK))
    return [
        Shape("equal64", "64 callers, 16 tokens each", callers=CALLERS, workload=pools["equal"], ramp_s=1.0),
        Shape("mixed64", "64 callers, 4 to 128 tokens, uniform", callers=CALLERS, workload=pools["mixed"], ramp_s=4.0),
        Shape("one", "one caller, 16 tokens", workload=pools["equal"]),
        Shape(
            "hangup256",
            "a probe after 256 callers left, 16 tokens",
            callers=256,
            workload=pools["equal"],
            load="hang_up",
        ),
    ]


def main() -> None:
    """Run the rounds, print the table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__)
    device_run.add_arguments(parser)
    parser.add_argument("--rounds", type=int, help="times that everything is measured (default 3; 5 with --device)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (default 15; 2 with --device)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of each contestant (default 2)")
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", nargs="+", default=CHOSEN, metavar="NAME", help=f"default: {' '.join(CHOSEN)}")
    chosen.add_argument("--tune", action="store_true", help="run every batch size and wait of every peer")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="shapes to run (default all)")
    options = parser.parse_args()
    if options.device:
        embed_device.run(options)
    else:
        _run(parser, options)


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    able, skipped = entrants(MODULES, () if options.tune else options.only)
    if not able:
        parser.exit(0, "".join(f"skipped {name}: {reason}\n" for name, reason in skipped.items()))
    os.environ[minilm.THREADS_VARIABLE] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        shapes = [s for s in embed_shapes(Path(folder)) if not options.shapes or s.name in options.shapes]
        samples = asyncio.run(run_rounds(able, shapes, options.rounds or 3, options.seconds or 15.0))
    result = record.record(
        "embed",
        samples,
        baseline=BASELINE,
        shapes={
            s.name: s.as_dict() | {"rows_in_flight": s.rows_in_flight, "workload": Path(s.workload).stem}
            for s in shapes
        },
        distributions=["numpy", "uvloop", *(name for _, c in able for name in c.needs)],
        skipped=skipped,
    )
    result["figures"] = goals.judge(goals.EMBED_GOALS, samples)
    print(record.table(result))
    if NAME in {contestant.name for _, contestant in able}:
        print("\n" + goals.table(result["figures"]))
    if options.json:
        record.write(result, options.json)


if __name__ == "__main__":
    main()
