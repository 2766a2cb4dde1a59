"""Captures read and packets classified on the CPU, beside others: `python -m benchmarks.packets --json OUT`.

Peers that are in another environment are found by its interpreter: BENCH_PEERS=/path/to/python.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aikoryu.netio.classify import compile_rules
from benchmarks import device_run, goals, packets_acl, packets_goals, packets_reading, packets_rules, record
from benchmarks.ours import NAME
from benchmarks.packets_captures import OWN_PACKETS, sources
from benchmarks.packets_reading import FLOWS, ONE, TWO
from benchmarks.record import Samples

PACKETS = 10_000_000
KEYS = 1_000_000
DISTRIBUTIONS = ("numpy",)


def main() -> None:
    """Measure, print the tables, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packets", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="times that everything is measured (default 2)")
    parser.add_argument("--packets", type=int, default=PACKETS, help=f"of a capture (default {PACKETS:,})")
    parser.add_argument("--keys", type=int, default=KEYS, help=f"looked up in each rule set (default {KEYS:,})")
    parser.add_argument("--rules", type=int, nargs="+", default=packets_rules.SIZES, help="sizes of the rule sets")
    parser.add_argument("--only", nargs="+", choices=("read", "lookups"), default=("read", "lookups"))
    parser.add_argument("--json", type=Path, help="write the result record to this file")
    options = parser.parse_args()
    run = Run(options)
    if "read" in options.only:
        run.read()
    if "lookups" in options.only:
        run.look_up()
    result = run.result()
    print(device_run.table(result) + "\n\n" + goals.table(result["figures"]))


class Run:
    """One run of the benchmark; its record is written after each shape.

    Attributes:
        samples, shapes, skipped: as `record.record` has them.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.samples: Samples = {}
        self.shapes: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self._options = options
        self._more: dict[str, Any] = {"peers": {}, "rule_sets": {}, "compile_s": {}}

    def read(self) -> None:
        """Every capture, by everybody who can read it."""
        options = self._options
        peers, missing = packets_reading.entrants()
        self.skipped |= missing
        self._more["peers"] = packets_reading.peer_versions()
        for name, tiles in sources(min(OWN_PACKETS, options.packets)).items():
            shape = packets_goals.read_shape(name)
            title = f"{options.packets:,} packets of the {packets_goals.CAPTURES[name]}"
            self.shapes[shape] = {
                "title": title,
                "packets": options.packets,
                "bytes_a_packet": round(tiles.bytes_a_packet, 1),
                "contestants": {peer.name: peer.title for peer in peers},
            }
            with tempfile.TemporaryDirectory(prefix="captures-") as folder:
                files = packets_reading.Files(tiles, Path(folder), name)
                for number in range(options.rounds):
                    self._read_round(shape, files, peers, number)
            self.result()
        if "read-mixed" not in self.shapes:
            self.skipped["the mixed capture"] = "../shared/data/packets is not there, nor $PACKET_TEST_DATA"

    def _read_round(
        self, shape: str, files: packets_reading.Files, peers: Sequence[packets_reading.Peer], number: int
    ) -> None:
        packets = self._options.packets
        whole = files.of(packets)
        self._add(shape, TWO, number, lambda: packets_reading.ours("dissect", whole, packets, 2))
        self._add(shape, ONE, number, lambda: packets_reading.ours("dissect", whole, packets))
        self._add(shape, FLOWS, number, lambda: packets_reading.ours("flows", whole, packets))
        for peer in peers:
            fewer = max(1, round(packets * peer.share))
            path = files.of(fewer)
            self._add(shape, peer.name, number, lambda: packets_reading.theirs(peer, path, fewer))  # noqa: B023 - called at once

    def look_up(self) -> None:
        """Every rule set, on one core each."""
        options = self._options
        if why := packets_acl.missing():
            self.skipped[packets_acl.NAME] = why
        for size in options.rules:
            for name in packets_rules.SETS:
                self._look_up(name, size)
            self.result()

    def _look_up(self, name: str, size: int) -> None:
        rules, origin = packets_rules.load(name, size)
        shape = packets_goals.rules_shape(name, size)
        self.shapes[shape] = {"title": f"{name}, {size:,} rules", "set": name, "rules": size}
        self._more["rule_sets"][shape] = origin
        keys = packets_rules.KeyColumns.drawn(rules, self._options.keys, "cpu").host()
        start = time.perf_counter()
        classifier = compile_rules(rules)
        self._more["compile_s"][shape] = round(time.perf_counter() - start, 3)

        def ours() -> dict[str, Any]:
            before, began = time.process_time(), time.perf_counter()
            classifier.classify(keys)
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - before
            return record.sample(rows_per_s=round(len(keys) / wall_s), cpu_us=round(cpu_s / len(keys) * 1e6, 4))

        # The library takes 10 s and more to build 100,000 rules, and asks the keys in a loop of its own.
        rounds = 1 if size > 50_000 else self._options.rounds
        with packets_acl.prepared(rules, keys) as acl:
            for number in range(rounds):
                self._add(shape, NAME, number, ours)
                if packets_acl.NAME not in self.skipped:
                    theirs = packets_acl.NAME
                    self._add(shape, theirs, number, lambda: record.sample(rows_per_s=acl.rate((0,), 1.0)))

    def _add(self, shape: str, name: str, number: int, measure: Any) -> None:
        """One sample, or the reason why there is none."""
        with device_run.guarded(f"{name}, {shape}", self.skipped):
            found = measure()
            self.samples.setdefault(shape, {}).setdefault(name, []).append(found)
            print(f"round {number + 1} {shape} {name}: {found['rows_per_s']:,.0f}/s", file=sys.stderr, flush=True)

    def result(self) -> dict[str, Any]:
        """What is known so far, written where it shall be."""
        result = record.record(
            "packets",
            self.samples,
            baseline=NAME,
            shapes=self.shapes,
            distributions=DISTRIBUTIONS,
            skipped=self.skipped,
        )
        result |= self._more | {"figures": packets_goals.judged(self.samples, on_device=False)}
        if self._options.json:
            record.write(result, self._options.json)
        return result


if __name__ == "__main__":
    main()
