"""`aikoryu demo`: the load and its table, the checks it rests on, and that nothing of it stays."""

from __future__ import annotations

import os
import re
import signal

import numpy as np
import pytest

from aikoryu.cli.demo_agents import Tally, is_product, same_direction
from aikoryu.cli.demo_report import Forming, figures, merged, verdict, well
from aikoryu.cli.demo_text import sentences
from aikoryu.cli.ls import Operated

from .conftest import Command, Start, eventually

FORMING = r"6 agents, +\d+ s: .*\d rows a batch"


def figure(command: Command, label: str) -> list[float]:
    """A line of the table."""
    (line,) = (line for line in command.heard if line.startswith(label))
    return [float(cell.replace(",", "")) for cell in re.findall(r"[\d,.]+", line.removeprefix(label))]


def ended(command: Command) -> None:
    eventually(lambda: command.processes() == [], "the demo's processes end")


def test_every_answer_is_checked_and_nothing_stays(start: Start) -> None:
    demo = start("demo", "--agents", "6", "--seconds", "2")
    demo.hear(FORMING)
    assert demo.end() == 0, demo.words
    matmul, embed = figure(demo, "calls  ")
    assert matmul > embed > 0
    assert figure(demo, "answers checked") == [matmul, embed]
    assert figure(demo, "answers wrong") == figure(demo, "calls without an answer") == [0, 0]
    assert all(
        1 <= mean <= most
        for mean, most in zip(figure(demo, "rows a batch, mean"), figure(demo, "rows a batch, most"), strict=True)
    )
    assert all(
        0 < p50 <= p99 for p50, p99 in zip(figure(demo, "latency, p50"), figure(demo, "latency, p99"), strict=True)
    )
    assert demo.heard[-1] == f"All {matmul + embed:,.0f} calls were answered, and every answer is right.\n"
    ended(demo)


def test_interrupt_drains_and_prints_the_table(start: Start) -> None:
    demo = start("demo", "--agents", "6", "--seconds", "600", "--set", "models.embed=")
    demo.hear(r"models.embed names no model.*matrices only")
    demo.hear(FORMING)
    demo.interrupt()
    assert demo.end() == 0, demo.words
    (calls,) = figure(demo, "calls  ")
    assert figure(demo, "answers checked") == [calls]
    ended(demo)


def test_nothing_stays_when_it_is_killed(start: Start) -> None:
    demo = start("demo", "--agents", "6", "--seconds", "600", "--set", "models.embed=")
    demo.hear(FORMING)
    assert len(demo.processes()) >= 8  # itself, the server, the worker, its engine, four of agents
    os.kill(demo.process.pid, signal.SIGKILL)
    assert demo.end() == -signal.SIGKILL
    ended(demo)


def test_lost_worker_is_no_success(start: Start) -> None:
    demo = start("demo", "--agents", "6", "--seconds", "600", "--set", "models.embed=", "--set", "bus.timeout_s=1")
    demo.hear(FORMING)
    (worker,) = (pid for pid in demo.processes() if "demo_worker" in command_line(pid))
    os.kill(worker, signal.SIGKILL)
    assert demo.end() == 1
    assert figure(demo, "calls without an answer") == [6]
    assert "Traceback" not in demo.words
    ended(demo)


def command_line(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()


@pytest.mark.parametrize("argument", [["--agents", "0"], ["--seconds", "0"], ["--seconds", "inf"], ["--agents", "x"]])
def test_wrong_arguments(argument: list[str], start: Start) -> None:
    demo = start("demo", *argument)
    assert demo.end() == 2
    assert "above 0" in demo.words


def test_products_are_checked() -> None:
    random = np.random.default_rng(1)
    a, b = (random.uniform(-1, 1, (64, 64)).astype(np.float32) for _ in "ab")
    c = a @ b
    assert is_product(c, a, b)
    wrong = c.copy()
    wrong[3, 4] += 1e-3
    for other in (wrong, c.T, c[:1], c.astype(np.float64), np.full_like(c, np.nan)):
        assert not is_product(other, a, b)


def test_embeddings_are_checked() -> None:
    random = np.random.default_rng(1)
    reference = random.normal(size=384)
    reference = (reference / np.linalg.norm(reference)).astype(np.float32)
    near = reference + np.float32(1e-4) * random.normal(size=384).astype(np.float32)
    assert same_direction(reference, reference)
    assert same_direction((near / np.linalg.norm(near)).astype(np.float32), reference)
    far = reference + np.float32(1e-3) * random.normal(size=384).astype(np.float32)
    for other in (far / np.linalg.norm(far), -reference, 2 * reference, reference[:3], np.full_like(reference, np.nan)):
        assert not same_direction(other.astype(np.float32), reference)


def test_only_complete_and_right_is_well() -> None:
    right = Tally(calls=2, latencies_us=[1000, 3000])
    assert well({"a": right})
    assert not well({"a": right, "b": Tally()})
    assert not well({"a": Tally(calls=1, mismatches=1, latencies_us=[1])})
    missing = Tally(calls=2, latencies_us=[1], error="Expired: no answer")
    assert not well({"a": missing})
    assert verdict({"a": missing, "b": Tally()}) == "\n".join(
        ["0 answers are wrong, 1 calls got no answer.", "b was never called.", "a: Expired: no answer"]
    )


def test_tallies_of_processes_add_up() -> None:
    parts = [{"a": Tally(3, 1, [1, 2])}, {"a": Tally(1, 0, [3], "Busy: full"), "b": Tally(1)}]
    assert merged(parts) == {"a": Tally(4, 1, [1, 2, 3], "Busy: full"), "b": Tally(1)}


def test_table_is_aligned() -> None:
    operated = Operated("matrix.matmul", {}, batches=4, rows=10, largest=5, engines={"cpu"})
    lines = figures({"matrix.matmul": Tally(2, 0, [1000, 3000])}, [operated]).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert [line.split()[-1] for line in lines[1:5]] == ["2", "4", "2.5", "5"]
    assert lines[5].endswith(" 2.0 ms")


def test_forming_tells_what_happened_since() -> None:
    forming = Forming()
    operated = Operated("models.embed.x", {}, batches=2, rows=10)
    assert forming.line([operated], 1.0) == "models.embed 10/s, 5.0 rows a batch"
    assert forming.line([operated], 2.0) == ""
    operated.batches, operated.rows = 3, 30
    assert forming.line([operated], 4.0) == "models.embed 10/s, 20.0 rows a batch"


def test_sentences_are_different_and_whole() -> None:
    found = sentences(300)
    assert len(set(found)) == 300
    assert all(20 <= len(text) <= 120 and text[0].isupper() and text[-1] in ".!?" for text in found)
