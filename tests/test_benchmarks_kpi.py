"""What a million rows cost: the benchmark runs, its meters read rightly, and its tables say what was found."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SMAPS = """\
1000-2000 r-xp 00000000 08:01 {inode} /lib/libtorch.so
Rss:               {file} kB
Pss:                 10 kB
Anonymous:            4 kB
VmFlags: rd ex
3000-4000 rw-p 00000000 00:00 0 [heap]
Rss:                100 kB
Pss:                100 kB
Anonymous:          100 kB
5000-6000 rw-s 00000000 00:01 9 /memfd:slab (deleted)
Rss:                 64 kB
Pss:                 32 kB
Anonymous:            0 kB
"""


@pytest.fixture(autouse=True)
def from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def process(proc: Path, pid: int, parent: int, *, name: str = "python", ticks: int = 0, smaps: str = "") -> None:
    folder = proc / str(pid)
    folder.mkdir()
    fields = ["S", str(parent), *["7"] * 9, str(ticks), "10", "20", "30", *["7"] * 30]  # utime, stime, cutime, cstime
    (folder / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    (folder / "status").write_text("Name:\tx\nVmHWM:\t     500 kB\nVmRSS:\t     400 kB\n")
    if smaps:
        (folder / "smaps").write_text(smaps)


def test_family_is_a_process_and_all_below_it(tmp_path: Path) -> None:
    from benchmarks.kpi_meter import family

    process(tmp_path, 1, 0)
    process(tmp_path, 10, 1)
    process(tmp_path, 11, 10, name="a) S 7 (b")
    process(tmp_path, 12, 11)
    process(tmp_path, 20, 1)
    assert sorted(family(10, tmp_path)) == [10, 11, 12]


def test_cpu_time_is_that_of_processes_which_are_there(tmp_path: Path) -> None:
    from benchmarks import kpi_meter

    process(tmp_path, 10, 1, ticks=40)
    assert kpi_meter.cpu_seconds([10, 99], tmp_path) == (40 + 10 + 20 + 30) / os.sysconf("SC_CLK_TCK")


def test_a_library_counts_once_and_whole(tmp_path: Path) -> None:
    from benchmarks.kpi_meter import memory

    process(tmp_path, 10, 1, smaps=SMAPS.format(inode=5, file=54))
    process(tmp_path, 11, 10, smaps=SMAPS.format(inode=5, file=44))
    process(tmp_path, 12, 10)  # of a kernel without smaps
    each = 4 + 100 + 32
    assert memory([10, 11, 12, 99], tmp_path) == ((2 * each + 50 + 400) * 1024, 3 * 500 * 1024)


def cpuinfo(proc: Path, model: int, siblings: int = 1) -> None:
    (proc / "cpuinfo").write_text(
        f"vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\nsiblings\t: {siblings}\ncpu cores\t: 1\n\n"
    )


@pytest.mark.parametrize(("model", "siblings", "watts"), [(143, 1, 6.25), (143, 2, 3.125), (1, 1, 5.0)])
def test_watts_are_assumed_without_counters(tmp_path: Path, model: int, siblings: int, watts: float) -> None:
    from benchmarks.kpi_meter import Processors

    cpuinfo(tmp_path, model, siblings)
    found = Processors(tmp_path, tmp_path)
    assert found.watts == watts
    assert f"{watts:.2f} W a busy CPU" in found.basis
    assert found.joules(4.0, 16.0, [], []) == 4 * watts


def test_counters_are_shared_out_by_cpu_time_and_start_again(tmp_path: Path) -> None:
    from benchmarks.kpi_meter import Processors

    for name, is_ in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{is_}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("100000000\n")
        (tmp_path / name / "energy_uj").write_text("90000000\n")
    found = Processors(tmp_path, tmp_path)
    before = found.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("10000000\n")
    assert found.watts is None
    assert found.joules(2.0, 8.0, before, found.read()) == pytest.approx(20.0 / 4)


@pytest.mark.parametrize(("factor", "found"), [(1, 0), (1.0001, 4)])
def test_one_row_of_every_eighth_call_is_checked_against_numpy(factor: float, found: int) -> None:
    from benchmarks.kpi_cases import Products

    rows, wrong = Products(8, seed=1), 0
    for _ in range(4 * 8):
        (a, b), token = rows.many(2)
        wrong += rows.wrong_many(a @ b * np.float32(factor), token)
    assert wrong == found


def test_times_are_the_same_on_both_paths() -> None:
    from benchmarks.kpi_load import Order, times

    order = Order(at=100.0, seconds=10.0, ramp_s=1.0, rate=8000.0, callers=0, seed=3)
    found = list(times(order, 8))
    assert found == list(times(order, 8)) != list(times(order._replace(seed=4), 8))
    assert found[0] > 99.0
    assert found[-1] < 110.0
    assert len(found) == pytest.approx(11_000, rel=0.05)


def test_latency_counts_from_when_a_call_was_due() -> None:
    from benchmarks.kpi_cases import CASES
    from benchmarks.kpi_load import Order, drive

    class Rows:
        def many(self, count: int) -> tuple[int, int]:
            return count, count

        def wrong_many(self, answers: int, token: int) -> int:
            return int(answers != token)

    class Stalls:
        """Holds its whole process up once, as a generator that falls behind is held up."""

        stalled = False

        async def call_many(self, rows: int) -> int:
            if not self.stalled:
                self.stalled = True
                time.sleep(0.1)  # noqa: ASYNC251 - the loop is meant to stand
            return rows

    case = CASES["matrix-256"]
    order = Order(time.perf_counter(), seconds=0.15, ramp_s=0.0, rate=2000.0, callers=0, seed=1)
    found = asyncio.run(drive(Stalls(), case, Rows(), order))
    assert max(found["late_s"]) > 0.05
    assert sum(latency > 0.05 for latency in found["latencies_s"]) > 10
    assert (found["mismatches"], found["errors"], found["unanswered"]) == (0, 0, 0)


def sample(**figures: float) -> dict[str, Any]:
    return {"mismatches": 0, "errors": 0, "unanswered": 0, "rows_per_s": 100.0, **figures}


def result(faults: int = 0) -> dict[str, Any]:
    from benchmarks import goals, kpi_table
    from benchmarks.kpi_table import CPU, GPU, SATURATED

    cpu = {"worker_cpu_s": 100.0, "joules": 500.0, "machine_joules": 600.0, "host_mib": 300.0, "memory_mib": 300.0}
    gpu = {"worker_cpu_s": 20.0, "joules": 2100.0, "gpu_joules": 2000.0, "host_mib": 400.0, "memory_mib": 1400.0}
    samples = {
        "embed": {
            CPU: [sample(**cpu)],
            GPU: [sample(**gpu)],
            SATURATED: [sample(**gpu | {"joules": 200.0, "gpu_busy": 0.85}) | {"errors": faults}],
        }
    }
    medians = kpi_table.medians(samples)
    return {
        "machine": {"cpu": "a CPU", "cores": 2, "python": "3.12"},
        "gpu": {"name": "a GPU", "memory_gib": 80, "driver": "1"},
        "date": "2026-01-01T00:00",
        "commit": "abc",
        "command": "python -m benchmarks.kpi",
        "shapes": {"embed": {"title": "sentences"}},
        "skipped": {},
        "medians": medians,
        "figures": goals.judge(kpi_table.judged("embed"), samples),
        "power": {
            "basis": "Assumed.",
            "assumed_watts": 5.0,
            "idle_watts": 70.0,
            "even_watts": {"embed": kpi_table.even_watts(medians["embed"])},
        },
    }


def test_tables_say_what_is_short() -> None:
    from benchmarks import kpi_table

    section, page = kpi_table.section(result()), "\n".join(kpi_table.page(result()))
    for line in (
        "| GPU busy, saturated | ≥ 0.8 | ≥ 0.9 | **0.85**: goal met |",
        "| worker's CPU time a row ÷ CPU path, equal load | ≤ 0.3 | ≤ 0.1 | **0.20**: goal met |",
        "| worker's memory ÷ CPU path, equal load | ≤ 1.5 | — | **1.33**: goal met |",
        "| worker's and GPU memory ÷ CPU path, equal load | ≤ 1.5 | — | **4.67**: short |",
        "| joules a row ÷ CPU path, equal load | ≤ 0.7 | ≤ 0.5 | **4.20**: short |",
        "| joules a row ÷ CPU path, saturated | ≤ 0.7 | ≤ 0.5 | **0.40**: aim reached |",
    ):
        assert line in section
        assert line in page
    assert "embed 25.00" in section, "2,000 J against 80 s of CPU time"
    assert "| GPU busy | — | — | 85% |" in page


def test_faults_void_a_cell() -> None:
    from benchmarks import kpi_table

    assert "**0.85**: faults of the GPU path, saturated |" in kpi_table.section(result(faults=1))


def test_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "kpi.json"
    command = ("benchmarks.kpi", "--quick", "--device", "cpu", "--cases", "matrix-64", "--json", str(path))
    done = subprocess.run(
        (sys.executable, "-m", *command), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["skipped"] == {"GPU path": "no GPU was measured"}
    (column,) = found["samples"]["matrix-64"].items()
    assert column[0] == "CPU path"
    (seen,) = column[1]
    assert (seen["mismatches"], seen["errors"], seen["unanswered"]) == (0, 0, 0), done.stderr
    assert seen["rows_per_s"] > 0
    assert seen["p50_ms"] <= seen["p99_ms"]
    assert 50 < seen["host_mib"] < 5000
    assert seen["joules"] > 0
    assert "CPU energy" in done.stdout
