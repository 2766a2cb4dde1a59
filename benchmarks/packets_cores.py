"""Classification on all cores, in a process without a GPU: `python -m benchmarks.packets_cores KEYS SECONDS SIZE`.

Our CPU path, a process a core, each with the same compiled rules; and DPDK's ACL library, a thread a core. Prints a
line of JSON for each sample.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aikoryu.netio.classify import Classifier, compile_rules
from aikoryu.netio.keys import Keys
from benchmarks import packets_acl, record
from benchmarks.packets_goals import ACL_CORES, CORES, rules_shape
from benchmarks.packets_rules import SETS, KeyColumns, load

SLICE_KEYS = 1 << 15
ENOUGH_RULES = 10_000
"""From which on the algorithm of DPDK's that was fastest is taken as the fastest."""


def main(keys: str, seconds: str, *sizes: str) -> None:
    """Print every sample as soon as it is there."""
    cores = sorted(os.sched_getaffinity(0))
    for name in SETS:
        algorithms = ["avx2"]
        if "avx512bw" in Path("/proc/cpuinfo").read_text():
            algorithms.append(packets_acl.WIDE)
        for size in map(int, sizes):
            rules, _ = load(name, size)
            asked = KeyColumns.drawn(rules, int(keys), "cpu").host()
            rate = rate_on(compile_rules(rules), asked, float(seconds), len(cores))
            _say(name, size, CORES, record.sample(rows_per_s=round(rate)))
            if why := packets_acl.missing():
                _say(name, size, ACL_CORES, why)
                continue
            with packets_acl.prepared(rules, asked) as acl:
                rates, failed = _acl_rates(acl, algorithms, cores, float(seconds))
            if not rates:
                _say(name, size, ACL_CORES, failed)
                continue
            best = max(rates, key=rates.__getitem__)
            _say(name, size, ACL_CORES, record.sample(rows_per_s=round(rates[best])) | {"algorithm": best})
            if size >= ENOUGH_RULES:  # 100,000 rules take 15 s to build
                algorithms = [best]


def _acl_rates(
    acl: packets_acl.Acl, algorithms: Sequence[str], cores: Sequence[int], seconds: float
) -> tuple[dict[str, float], str]:
    """Lookups/s by algorithm, and why the last one that failed did."""
    rates, failed = dict[str, float](), ""
    for algorithm in algorithms:
        try:
            rates[algorithm] = acl.rate(cores, seconds, algorithm)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            failed = f"{type(error).__name__}: {error}"
    return rates, failed


def _say(name: str, size: int, contestant: str, found: dict[str, Any] | str) -> None:
    print(json.dumps([rules_shape(name, size), contestant, found]), flush=True)


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
