from aikoryu.cli.chaos import report
from aikoryu.cli.chaos.faults import FAULTS
from aikoryu.cli.chaos.ledger import Account
from aikoryu.cli.chaos.run import Outcome

CLEAN = Outcome(FAULTS[0], 7, Account(calls=1000, right=1000, longest_s=0.0125), 60, 1.25)
LOST = Outcome(FAULTS[1], 7, Account(calls=1000, right=997, wrong=1, errors={"busy": 2}), 0, 0.5)
GONE = Outcome(FAULTS[2], 7, Account(calls=10, right=10), 0, None)


def test_a_clean_run_is_well() -> None:
    assert report.well([CLEAN])
    told = "1 faults, 1,000 calls: each got its one right answer. None lost, none answered twice."
    assert report.verdict([CLEAN]) == told


def test_nothing_run_is_not_well() -> None:
    assert not report.well([])


def test_lost_and_wrong_calls_are_told() -> None:
    assert not report.well([CLEAN, LOST])
    assert report.verdict([CLEAN, LOST]) == "memory: 2 lost (2 busy), 1 wrong, 0 answered twice."


def test_a_device_that_does_not_come_back_is_told() -> None:
    assert not report.well([GONE])
    assert "wrong: the device was not back in time." in report.verdict([GONE])


def test_a_fault_that_did_not_happen_is_told() -> None:
    idle = Outcome(FAULTS[0], 0, Account(calls=1000, right=1000), 0, 0.1)
    assert not report.well([idle])
    assert report.verdict([idle]) == "raise: it did not happen."


def test_the_table_has_a_line_a_fault() -> None:
    lines = report.figures([CLEAN, GONE]).splitlines()
    assert lines[0].split("  ")[0] == "fault"
    assert lines[1].split() == ["raise", "7", "1,000", "0", "0", "0", "12", "ms", "60", "1.2", "s"]
    assert lines[2].split()[-1] == "never"
