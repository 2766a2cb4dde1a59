"""Stations: since when a batch is held against its engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aikoryu.gpu.inline import InlineEngine
from aikoryu.gpu.lane import Lane
from aikoryu.gpu.plan import Place, Plan
from aikoryu.gpu.station import Running, Station

BEGAN = 64


@pytest.fixture
def station() -> Iterator[Station]:
    engine = InlineEngine({}, slab_bytes=4096)
    yield Station(engine, first_rows=64)
    for slab in (*engine.slabs, engine._pulse):
        slab.close()


def handed_over(station: Station, slab: int, at: float) -> Running:
    spec: Any = None
    station.engine.slabs[slab].stamp(BEGAN, 0.0)
    return Running(Plan(Lane("lane", 100, Place("cpu")), station.place, [], 1, []), spec, slab, BEGAN, at)


def begin(station: Station, running: Running | None, at: float) -> None:
    """As the engine does; None: a batch of another front."""
    engine: Any = station.engine
    if running is not None:
        engine.slabs[running.slab].stamp(running.began, at)
    engine._pulse.stamp(0, at)


def test_batch_counts_from_when_it_began(station: Station) -> None:
    first, second = handed_over(station, 0, 1.0), handed_over(station, 1, 2.0)
    begin(station, first, 3.0)
    begin(station, second, 7.0)
    assert (station.since(first), station.since(second)) == (3.0, 7.0)


def test_batch_of_an_engine_that_begins_nothing_counts_from_when_it_was_handed_over(station: Station) -> None:
    begin(station, None, 1.0)
    assert station.since(handed_over(station, 0, 5.0)) == 5.0


def test_batch_that_waits_behind_those_of_others_does_not_count_what_these_take(station: Station) -> None:
    waiting = handed_over(station, 0, 1.0)
    for at in (2.0, 50.0, 100.0):
        begin(station, None, at)
        assert station.since(waiting) == at
