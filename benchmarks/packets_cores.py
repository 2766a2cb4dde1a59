"""Classification on all cores, in a process without a GPU: `python -m benchmarks.packets_cores KEYS SECONDS SIZE`.

Our CPU path, a process a core, each with the same compiled rules; and DPDK's ACL library, a thread a core. Prints a
line of JSON for each sample.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aikoryu.netio.classify import Classifier, compile_rules
from aikoryu.netio.keys import Keys
from benchmarks import packets_acl, record
from benchmarks.packets_goals import ACL_CORES, CORES, rules_shape
from benchmarks.packets_rules import SETS, KeyColumns, load

SLICE_KEYS = 1 << 15


def main(keys: str, seconds: str, *sizes: str) -> None:
    """Print every sample as soon as it is there."""
    cores = sorted(os.sched_getaffinity(0))
    algorithm = packets_acl.WIDE if "avx512bw" in Path("/proc/cpuinfo").read_text() else "avx2"
    for size in map(int, sizes):
        for name in SETS:
            for contestant, found in _rates(name, size, int(keys), float(seconds), cores, algorithm):
                print(json.dumps([rules_shape(name, size), contestant, found]), flush=True)


def _rates(
    name: str, size: int, count: int, seconds: float, cores: Sequence[int], algorithm: str
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """A sample of each contestant, or why there is none."""
    rules, _ = load(name, size)
    keys = KeyColumns.drawn(rules, count, "cpu").host()
    rate = rate_on(compile_rules(rules), keys, seconds, len(cores))
    yield CORES, record.sample(rows_per_s=round(rate))
    if why := packets_acl.missing():
        yield ACL_CORES, why
        return
    try:
        with packets_acl.prepared(rules, keys) as acl:
            rate = acl.rate(cores, seconds, algorithm)
    except (RuntimeError, OSError) as error:
        yield ACL_CORES, f"{type(error).__name__}: {error}"
    else:
        yield ACL_CORES, record.sample(rows_per_s=round(rate))


def rate_on(classifier: Classifier, keys: Keys, seconds: float, processes: int) -> float:
    """Lookups/s of so many processes together, each of which asks for all keys from a place of its own."""
    context = multiprocessing.get_context("fork")
    ready, counts = context.Barrier(processes), context.Array("d", processes)

    def ask(number: int) -> None:
        at = number * len(keys) // processes
        ready.wait()
        start, asked = time.perf_counter(), 0
        while (took_s := time.perf_counter() - start) < seconds:
            asked += len(classifier.classify(keys[at : at + SLICE_KEYS]))
            at = (at + SLICE_KEYS) % len(keys)
        counts[number] = asked / took_s

    children = [context.Process(target=ask, args=(number,)) for number in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return float(sum(counts[:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
