"""Which process owns which partitions."""

from __future__ import annotations

from aikoryu.agents.shares import share

NAMES = [f"host-{number}" for number in range(5)]


def shares(processes: list[str]) -> dict[str, set[int]]:
    return {process: share(process, processes, "counter", 64) for process in processes}


def test_each_partition_has_one_owner() -> None:
    owned = shares(NAMES)
    assert sorted(partition for each in owned.values() for partition in each) == list(range(64))
    assert share("alone", ["alone"], "counter", 64) == set(range(64))


def test_shares_are_fair() -> None:
    fair = 4096 / len(NAMES)
    for process in NAMES:
        assert abs(len(share(process, NAMES, "counter", 4096)) - fair) < 0.15 * fair


def test_all_come_to_the_same_answer_in_whatever_order_they_heard_of_one_another() -> None:
    assert shares(NAMES) == shares(NAMES[::-1])


def test_who_goes_leaves_its_share_to_the_others_and_moves_nothing_else() -> None:
    before, after = shares(NAMES), shares(NAMES[1:])
    for process in NAMES[1:]:
        assert before[process] <= after[process]


def test_agents_are_dealt_differently() -> None:
    assert share(NAMES[0], NAMES, "counter", 64) != share(NAMES[0], NAMES, "basket", 64)
