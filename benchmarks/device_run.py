"""What benchmarks with `--device` have in common: arguments, the table, and where the record and its plot go."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import device_plot, goals, record, stages
from benchmarks.record import FAULTS, RESULTS, Samples

FIGURES: Mapping[str, tuple[str, str]] = {
    "rows_per_s": ("rows/s", ",.5g"),
    "tflops": ("TFLOP/s", ",.4g"),
    "p50_us": ("p50 µs", ",.1f"),
    "p99_us": ("p99 µs", ",.1f"),
    "p50_ms": ("p50 ms", ",.2f"),
    "p99_ms": ("p99 ms", ",.2f"),
    "cpu_us": ("CPU µs", ",.3f"),
    "client_cpu_us": ("client µs", ",.2f"),
    "server_cpu_us": ("server µs", ",.2f"),
    "gpu_busy": ("GPU busy", ".0%"),
    "sm_active": ("SM active", ".0%"),
    "joules_per_1000": ("J/1,000", ",.3f"),
}
"""Title and form of each figure of a sample."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every benchmark on a device."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="measure on this machine's GPU, or the same on its CPU"
    )
    parser.add_argument(
        "--quick", action="store_true", help="with --device: fewer and shorter rounds, for a first look"
    )


@contextlib.contextmanager
def guarded(what: str, skipped: dict[str, str]) -> Iterator[None]:
    """Go on without a part that fails, its traceback on stderr, its reason in the record: time on a GPU is scarce."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        skipped[what] = f"{type(error).__name__}: {error}"[:500]


def json_path(name: str, options: argparse.Namespace) -> Path | None:
    """Where the record goes: where it is told to, or to the results if the run is a whole one."""
    if options.json or options.quick:
        given: Path | None = options.json
        return given
    return RESULTS / f"{name}-{options.device}.json"


def finish(
    name: str,
    options: argparse.Namespace,
    samples: Samples,
    *,
    baseline: str,
    shapes: dict[str, Any],
    distributions: Sequence[str],
    skipped: dict[str, str],
    judged: Sequence[goals.Goal],
    more: Mapping[str, Any] = {},
) -> None:
    """Judge, print the tables, write the record and its plot.

    Args:
        name: the benchmark.
        options: of its command line.
        samples, baseline, shapes, distributions, skipped: as `record.record` has them.
        judged: what the figures have to be.
        more: what else belongs into the record.
    """
    result = record.record(
        name, samples, baseline=baseline, shapes=shapes, distributions=distributions, skipped=skipped
    )
    result |= {"device": options.device, "gpu": record.gpu(options.device), **more}
    if found := staged(samples):
        result["stages"] = found
    result["figures"] = goals.judge(judged, samples)
    print(table(result) + "\n\n" + goals.table(result["figures"]))
    if path := json_path(name, options):
        record.write(result, path)
        if find_spec("matplotlib") is None:
            print(f"No plot beside {path.name}: pip install 'aikoryu[bench]' brings matplotlib.", file=sys.stderr)
        else:
            device_plot.draw(name, result, path.with_suffix(".svg"))


def table(result: dict[str, Any]) -> str:
    """The medians as text, a block for each shape, with the columns that it has."""
    lines = []
    for shape, by in result["medians"].items():
        lines.append(f"\n{result['shapes'][shape]['title']}")
        columns = [figure for figure in FIGURES if any(figure in figures for figures in by.values())]
        form = "{:<28}" + "{:>12}" * (len(columns) + 2)
        lines.append(form.format("", *(FIGURES[figure][0] for figure in columns), "× base", "faults"))
        for contestant, figures in by.items():
            ratio = result["ratios"].get(shape, {}).get(contestant)
            cells = [cell(figures.get(figure), FIGURES[figure][1]) for figure in columns]
            lines.append(
                form.format(contestant, *cells, cell(ratio, ".2f"), str(sum(figures[kind] for kind in FAULTS)))
            )
        lines += [f"  cores busy at {name}: {found}" for name, figures in by.items() if (found := cores(figures))]
        lines += [stages.line(name, found) for name, found in result.get("stages", {}).get(shape, {}).items()]
    lines += [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def cores(figures: Mapping[str, float]) -> str:
    """How many cores each kind of process kept busy, which tells what binds; empty where it was not seen."""
    if not {"rows_per_s", "server_cpu_us", "engine_cpu_us", "client_cpu_us", "nats_cpu_us"} <= figures.keys():
        return ""
    us = {
        "clients": figures["client_cpu_us"],
        "NATS": figures["nats_cpu_us"],
        "fronts": figures["server_cpu_us"] - figures["engine_cpu_us"],
        "engine": figures["engine_cpu_us"],
    }
    return ", ".join(f"{role} {each * figures['rows_per_s'] / 1e6:.1f}" for role, each in us.items())


def staged(samples: Samples) -> dict[str, dict[str, Any]]:
    """Time by stage, by shape and contestant, where the contestant tells it."""
    found = {
        shape: {name: one for name, rounds in by.items() if (one := stages.medians(rounds))}
        for shape, by in samples.items()
    }
    return {shape: by for shape, by in found.items() if by}


def cell(value: float | None, form: str) -> str:
    """A figure for people."""
    return "—" if value is None else format(value, form)
