"""The result record: what was run, on what, and every sample, so that a figure can be questioned later."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, nats_binary

RESULTS = ROOT / "benchmarks" / "results"
Samples = dict[str, dict[str, list[dict[str, Any]]]]  # shape → contestant → one sample a round
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
FAULTS = ("mismatches", "errors", "unanswered")
MEDIANS = (
    "rows_per_s",
    "p50_ms",
    "p99_ms",
    "client_cpu_us",
    "server_cpu_us",
    "nats_cpu_us",
    "engine_cpu_us",
    "alone_ms",
    "after_hang_up_ratio",
    "p50_us",
    "p99_us",
    "cpu_us",
    "tflops",
    "gb_per_s",
    "gpu_busy",
    "sm_active",
    "gpu_watts",
    "joules_per_1000",
)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest-rank quantile of an ascending, non-empty sequence."""
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def latency_ms(latencies_s: Iterable[float]) -> dict[str, float]:
    """`p50_ms` … `max_ms` of latencies in seconds; empty when there are none."""
    ordered = sorted(latencies_s)
    return {f"{name}_ms": round(quantile(ordered, q) * 1e3, 4) for name, q in QUANTILES.items()} if ordered else {}


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Median over rounds of each figure that every round has, and the sums of what must be zero."""
    result = {
        name: statistics.median(sample[name] for sample in rounds)
        for name in MEDIANS
        if all(sample.get(name) is not None for sample in rounds)
    }
    return result | {name: sum(sample[name] for sample in rounds) for name in FAULTS}


def ratio(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], figure: str = "rows_per_s") -> float | None:
    """Median over rounds of mine/theirs: both ran next to each other in a round, so drift cancels."""
    pairs = [(a[figure], b[figure]) for a, b in zip(mine, theirs, strict=False) if a.get(figure) and b.get(figure)]
    return round(statistics.median(a / b for a, b in pairs), 4) if pairs else None


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, kernel and Python."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def gpu(device: str) -> dict[str, Any] | None:
    """The GPU's name and memory in GiB, the driver, and the CUDA that torch is built for; None on the CPU."""
    if device == "cpu":
        return None
    import torch

    from aikoryu.gpu.nvml import visible

    found = next((one for one in visible() if one.device == "cuda:0"), None)
    return {
        "name": torch.cuda.get_device_name(0),
        "memory_gib": round((found.memory_bytes if found else torch.cuda.mem_get_info(0)[1]) / 2**30, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        said = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except Exception:  # the library is missing, or finds no driver
        return None
    return said.decode() if isinstance(said, bytes) else str(said)


def commit() -> str | None:
    """The checked-out commit, "+dirty" when the tree differs from it (results aside), None outside a repository.

    Where the tree is a copy whose repository is another's, or none, the variable `BENCH_COMMIT` says of what.
    """
    told = os.environ.get("BENCH_COMMIT")
    if told or shutil.which("git") is None:
        return told or None

    def git(*arguments: str) -> str | None:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--verify", "--quiet", "HEAD")
    differs = git("--no-optional-locks", "status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return f"{head}+dirty" if head and differs else head


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed versions, None for what is missing; `nats-server` is asked itself."""
    found: dict[str, str | None] = {}
    for name in sorted(set(distributions)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    binary = nats_binary()
    if binary:
        answer = subprocess.run((binary, "--version"), capture_output=True, text=True, check=False)
        found["nats-server"] = answer.stdout.strip().removeprefix("nats-server: ")
    return found


def about(benchmark: str, distributions: Iterable[str]) -> dict[str, Any]:
    """What was run, when, on what: the head of every result.

    Args:
        benchmark: name of the benchmark, which is that of its module.
        distributions: packages whose versions matter.
    """
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join((Path(sys.executable).name, "-m", f"benchmarks.{benchmark}", *sys.argv[1:])),
        "machine": machine(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "versions": versions(distributions),
    }


def sample(wrong: int = 0, **figures: float) -> dict[str, Any]:
    """What one round of something in this process gave; `wrong` counts wrong values."""
    return {"mismatches": wrong, "errors": 0, "unanswered": 0, **figures}


def record(
    benchmark: str,
    samples: Samples,
    *,
    baseline: str,
    shapes: dict[str, Any],
    distributions: Iterable[str],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """The whole result as JSON-ready data.

    Args:
        benchmark: name of the benchmark.
        samples: one sample a round for each shape and contestant.
        baseline: contestant that `ratios` divides by, where it ran in the shape.
        shapes: description of each shape by name.
        distributions: packages whose versions matter.
        skipped: contestants that did not run, with the reason.
    """
    return {
        **about(benchmark, distributions),
        "skipped": skipped,
        "shapes": shapes,
        "samples": samples,
        "medians": {s: {c: medians(rounds) for c, rounds in by.items()} for s, by in samples.items()},
        "baseline": baseline,
        "ratios": {
            shape: {c: ratio(rounds, by[baseline]) for c, rounds in by.items()}
            for shape, by in samples.items()
            if baseline in by
        },
    }


def write(result: dict[str, Any], path: Path) -> None:
    """Write the record as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def table(result: dict[str, Any]) -> str:
    """The medians as text, a block for each shape."""
    lines = []
    for shape, by in result["medians"].items():
        about = result["shapes"][shape]
        lines.append(f"\n{shape}: {about['title']} ({about['rows_in_flight']} rows in flight)")
        head = ("contestant", "rows/s", "× base", "p50 ms", "p99 ms", "client µs", "server µs", "faults")
        lines.append("{:<22}{:>11}{:>9}{:>10}{:>10}{:>11}{:>11}{:>8}".format(*head))
        for contestant, figures in by.items():
            cells = (
                _cell(figures.get("rows_per_s"), ",.0f"),
                _cell(result["ratios"].get(shape, {}).get(contestant), ".2f"),
                *(_cell(figures.get(name), ".2f") for name in ("p50_ms", "p99_ms")),
                *(_cell(figures.get(name), ".1f") for name in ("client_cpu_us", "server_cpu_us")),
                str(sum(figures[kind] for kind in FAULTS)),
            )
            lines.append("{:<22}{:>11}{:>9}{:>10}{:>10}{:>11}{:>11}{:>8}".format(contestant, *cells))
            if "alone_ms" in figures:
                probe = f"{figures['after_hang_up_ratio']:.1f} × its {figures['alone_ms']:.1f} ms alone"
                lines.append(f"  the probe after the hang-up took {probe}")
    lines += [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)
