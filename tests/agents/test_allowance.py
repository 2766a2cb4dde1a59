"""So much a second, and no more."""

from __future__ import annotations

from aikoryu.agents.allowance import Allowance


def test_an_allowance_is_so_much_a_second() -> None:
    allowance = Allowance(4.0)
    assert [allowance.take(1, 100.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [allowance.take(1, 100.5) for _ in range(3)] == [True] * 2 + [False]
    assert allowance.take(40, 200.0)  # larger than all that there is: what follows waits
    assert not allowance.take(1, 209.0)
    assert allowance.take(1, 209.1)
