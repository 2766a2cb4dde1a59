from typing import Any

from aikoryu.cli.chaos.timeline import Counters, Sample

SUBJECT = "aikoryu.v1.default.matrix.multiply"


def worker(id_: str, rows: int, spare_rows: int, breaker: str = "closed", subject: str = SUBJECT) -> dict[str, Any]:
    data = {"rows": rows, "spare_rows": spare_rows, "breaker": breaker}
    return {"id": id_, "endpoints": [{"subject": subject, "data": data}]}


def test_counters_give_what_happened_since() -> None:
    counters = Counters(SUBJECT)
    counters.sample(0.0, [worker("a", 100, 10), worker("b", 50, 0)])
    assert counters.sample(1.0, [worker("a", 180, 30), worker("b", 60, 10)]) == Sample(1.0, 60, 30, "closed")


def test_a_worker_that_comes_anew_brings_no_past() -> None:
    counters = Counters(SUBJECT)
    counters.sample(0.0, [worker("a", 100, 10)])
    assert counters.sample(1.0, [worker("a", 110, 10), worker("b", 5000, 400)]) == Sample(1.0, 10, 0, "closed")


def test_the_worst_breaker_is_told() -> None:
    counters = Counters(SUBJECT)
    assert counters.sample(0.0, [worker("a", 0, 0, "half_open"), worker("b", 0, 0)]).breaker == "half_open"
    assert counters.sample(0.0, [worker("a", 0, 0, "half_open"), worker("b", 0, 0, "open")]).breaker == "open"


def test_other_operations_do_not_count() -> None:
    assert Counters(SUBJECT).sample(0.0, [worker("a", 9, 0, subject="aikoryu.v1.default.echo")]).breaker == ""
