"""The network system on a GPU host: `python -m benchmarks.packets_cuda [--quick] [--json OUT]`, about six minutes.

The record is written after each figure: a run that is cut leaves what it had. `dpdk-test-acl` is a peer if it is on
PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aikoryu.gpu.cuda import DeviceRefused
from aikoryu.gpu.device import open_device
from aikoryu.gpu.packets.kernels import PacketKernels
from aikoryu.netio.classify import Classifier, compile_rules
from benchmarks import copies, device_run, goals, packets_goals, packets_nats, packets_rules, record
from benchmarks.ours import NAME
from benchmarks.packets_captures import OWN_PACKETS, sources
from benchmarks.packets_device import Repeated, Resident
from benchmarks.packets_flow_table import POWER, UNIFORM, ZIPF, FlowLoad
from benchmarks.processes import ROOT
from benchmarks.record import RESULTS, Samples
from benchmarks.standing import run_standing

FIGURES = ("lookups", "packets", "flows", "nats", "cores")
DISTRIBUTIONS = ("numpy", "torch", "cupy-cuda13x", "cupy-cuda12x", "nats-py", "msgspec", "uvloop")
CLASSIFIED_BY = "fw1"
CORES_LIMIT_S = 300.0


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: of each measurement.
        least_s: length of one, s.
        rules: sizes of the rule sets.
        keys: that stay on the device.
        packet_bytes: of packets that stay, and of those that come from the host.
        capture_packets: of the capture of our own making, before it is repeated.
        packet_rules: size of the set by which packets are classified.
        flows, batch, batches: live flows; packets of a batch; batches of each kind.
        processes, fronts, window_s: that replay over NATS; of the worker; length of a window.
        cpu_keys, cpu_s: on all cores: keys, and about how long they are asked.
    """

    rounds: int = 5
    least_s: float = 0.25
    rules: tuple[int, ...] = packets_rules.SIZES
    keys: int = 64 << 20
    packet_bytes: int = 1 << 30
    capture_packets: int = OWN_PACKETS
    packet_rules: int = 10_000
    flows: int = 10_000_000
    batch: int = 1 << 20
    batches: int = 8
    processes: int = 8
    fronts: int = 4
    window_s: float = 2.0
    cpu_keys: int = 1_000_000
    cpu_s: float = 1.0


QUICK = Sizes(rounds=2, least_s=0.1, rules=(1_000, 10_000), flows=2_000_000, batches=4, window_s=1.0, cpu_s=0.3)


def main() -> None:
    """Measure, print the tables, write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packets_cuda", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller, for a first look")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES, help="figures to measure (default all)")
    parser.add_argument("--json", type=Path, help=f"where the record goes (default {RESULTS.name}/packets-cuda.json)")
    options = parser.parse_args()
    device = open_device("cuda:0", threads=len(os.sched_getaffinity(0)))
    try:
        device.open()
    except DeviceRefused as error:
        sys.exit(str(error))
    kernels = PacketKernels.on(device)
    if kernels is None:
        sys.exit("CuPy is missing, or cannot compile: pip install 'aikoryu[cuda13]'")
    path = options.json or (None if options.quick else RESULTS / "packets-cuda.json")
    run = Run(kernels, QUICK if options.quick else Sizes(), path)
    run.measure(options.only)
    result = run.result()
    print(device_run.table(result) + "\n\n" + goals.table(result["figures"]))


class Run:
    """One run.

    Args:
        kernels: of the device.
        sizes: how much is measured.
        path: where the record goes; None keeps it.

    Attributes:
        samples, shapes, skipped: as `record.record` has them.
    """

    def __init__(self, kernels: PacketKernels, sizes: Sizes, path: Path | None) -> None:
        self.samples: Samples = {}
        self.shapes: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self._sizes = sizes
        self._path = path
        self._resident = Resident(kernels, sizes.least_s)
        self._device = kernels.device
        self._more: dict[str, Any] = {"sizes": sizes._asdict(), "rule_sets": {}}

    def measure(self, figures: Sequence[str]) -> None:
        """Measure some of `FIGURES`, and write the record after each."""
        for name in FIGURES:
            if name in figures:
                with device_run.guarded(name, self.skipped):
                    getattr(self, f"_{name}")()
                self._release()
                self.result()

    def _lookups(self) -> None:
        sizes = self._sizes
        for size in sizes.rules:
            for name in packets_rules.SETS:
                shape = self._rule_shape(name, size)
                with device_run.guarded(shape, self.skipped):
                    rules, classifier = self._compiled(name, size)
                    with self._resident.on_stream():
                        keys = packets_rules.KeyColumns.drawn(rules, sizes.keys, self._device.name)
                        self._add(shape, self._resident.look_up(classifier, keys, sizes.rounds))
                        del keys
                self._release()
            self.result()

    def _packets(self) -> None:
        classifier = self._compiled(CLASSIFIED_BY, self._sizes.packet_rules)[1]
        for name, tiles in sources(self._sizes.capture_packets).items():
            packets = Repeated.of(tiles, self._sizes.packet_bytes)
            title = f"{packets.nbytes / 1e9:.2g} GB of the {packets_goals.CAPTURES[name]}, {self._rules_title()}"
            shape = f"resident-{name}"
            self.shapes[shape] = {"title": f"packets that stay on the device: {title}"}
            with device_run.guarded(shape, self.skipped), self._resident.on_stream():
                self._add(shape, self._resident.classify_packets(classifier, packets, self._sizes.rounds))
            self._release()
            shape = f"host-{name}"
            self.shapes[shape] = {"title": f"packets from host memory: {title}"}
            with device_run.guarded(shape, self.skipped):
                self._add(shape, self._resident.from_host(classifier, packets, self._sizes.rounds))
            self._release()
        size = min(self._sizes.packet_bytes, 256 << 20)
        self._more["copies_gb_per_s"] = copies.copied_alone(self._device.name, size, self._sizes.least_s)

    def _flows(self) -> None:
        sizes = self._sizes
        with self._resident.on_stream():
            load = FlowLoad(self._resident.kernels, sizes.flows, sizes.batch)
            found = load.rounds(sizes.batches, sizes.rounds)
            del load
        for shape, law in ((UNIFORM, "uniform"), (ZIPF, f"Zipf {POWER}")):
            title = f"{sizes.flows:,} live flows, batches of {sizes.batch:,} packets, {law}"
            self.shapes[shape] = {"title": title}
            self._add(shape, found[shape])

    def _nats(self) -> None:
        sizes = self._sizes
        shape = packets_nats.shape(sizes.processes)
        title = f"over NATS, {shape.title}; raw packets, {self._rules_title()}, {sizes.fronts} fronts"
        self.shapes[shape.name] = {"title": title}
        with tempfile.TemporaryDirectory(prefix="captures-") as folder:
            path = Path(folder) / "replayed.pcap"
            name, tiles = list(sources(sizes.capture_packets).items())[-1]
            tiles.write(path, len(tiles))
            self.shapes[shape.name]["capture"] = packets_goals.CAPTURES[name]
            os.environ |= self._told(path)
            able = [(packets_nats.MODULE, one) for one in packets_nats.CONTESTANTS]
            standing = run_standing(able, [shape], sizes.rounds, sizes.window_s, self._device.name)
            samples, failed = asyncio.run(standing)
        self.skipped |= failed
        for found in samples.values():
            self._add(shape.name, found)

    def _told(self, path: Path) -> Mapping[str, str]:
        """What the worker and load processes are told."""
        return {
            packets_nats.DEVICE: self._device.name,
            packets_nats.FRONTS: str(self._sizes.fronts),
            packets_nats.CAPTURE: str(path),
            packets_nats.RULES: str(self._sizes.packet_rules),
        }

    def _cores(self) -> None:
        """In a process of its own: its children are forks, which a process with a GPU must not have."""
        sizes = self._sizes
        arguments = (sizes.cpu_keys, sizes.cpu_s, *sizes.rules)
        command = (sys.executable, "-m", "benchmarks.packets_cores", *map(str, arguments))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
            assert child.stdout is not None
            for line in child.stdout:
                shape, contestant, found = json.loads(line)
                if isinstance(found, str):
                    self.skipped[f"{contestant}, {shape}"] = found
                else:
                    self._rule_shape(*_set_and_size(shape))
                    self._add(shape, {contestant: [found]})
                    self.result()
        if child.returncode:
            raise RuntimeError(f"packets_cores ended with status {child.returncode}; what it said is above")

    def _compiled(self, name: str, size: int) -> tuple[Any, Classifier]:
        rules, self._more["rule_sets"][packets_goals.rules_shape(name, size)] = packets_rules.load(name, size)
        return rules, compile_rules(rules)

    def _rules_title(self) -> str:
        return f"{self._sizes.packet_rules:,} rules of {CLASSIFIED_BY}"

    def _rule_shape(self, name: str, size: int) -> str:
        shape = packets_goals.rules_shape(name, size)
        title = f"{name}, {size:,} rules, {self._sizes.keys:,} keys that stay on the device"
        self.shapes[shape] = {"title": title, "set": name, "rules": size}
        return shape

    def _add(self, shape: str, found: Mapping[str, list[dict[str, Any]]]) -> None:
        for name, rounds in found.items():
            self.samples.setdefault(shape, {}).setdefault(name, []).extend(rounds)
            rate = max((one["rows_per_s"] for one in rounds if one.get("rows_per_s")), default=0)
            print(f"{shape} {name}: {rate:,.0f}/s", file=sys.stderr, flush=True)

    def _release(self) -> None:
        if self._device.is_cuda:
            import torch

            torch.cuda.empty_cache()

    def result(self) -> dict[str, Any]:
        """What is known so far, written where it shall be."""
        result = record.record(
            "packets_cuda",
            self.samples,
            baseline=NAME,
            shapes=self.shapes,
            distributions=DISTRIBUTIONS,
            skipped=self.skipped,
        )
        result |= self._more | {"stages": device_run.staged(self.samples)}
        result["gpu"] = record.gpu("cuda" if self._device.is_cuda else "cpu")
        result["figures"] = packets_goals.judged(self.samples, on_device=True)
        if self._path:
            record.write(result, self._path)
        return result


def _set_and_size(shape: str) -> tuple[str, int]:
    name, _, size = shape.partition("-")
    return name, int(size)


if __name__ == "__main__":
    main()
