import numpy as np

from aikoryu.cli.chaos.ledger import BIN_S, Account, Ledger


def told(ledger: Ledger, first: int, right: list[bool], sent_s: float = 100.0, now_s: float = 100.01) -> None:
    ledger.answered(first, np.array(right), sent_s, now_s)


def test_calls_with_one_right_answer_each_are_clean() -> None:
    ledger = Ledger(100.0)
    assert ledger.open(2) == 0
    assert ledger.open(1) == 2
    told(ledger, 0, [True, True])
    told(ledger, 2, [True], now_s=100.25)
    account = ledger.account()
    assert account.clean
    assert (account.calls, account.right, account.lost) == (3, 3, 0)
    assert account.longest_s == 0.25
    assert account.answered == [2, 0, 1]


def test_no_call_is_not_clean() -> None:
    assert not Ledger(0.0).account().clean


def test_a_call_without_an_answer_is_lost() -> None:
    ledger = Ledger(100.0)
    ledger.open(2)
    told(ledger, 0, [True])
    assert ledger.account().lost == 1
    assert not ledger.account().clean


def test_an_error_is_a_lost_call() -> None:
    ledger = Ledger(100.0)
    ledger.open(3)
    told(ledger, 0, [True])
    ledger.failed(2, "busy")
    assert ledger.account().lost == 2
    assert ledger.account().errors == {"busy": 2}


def test_a_wrong_answer_is_no_right_one() -> None:
    ledger = Ledger(100.0)
    ledger.open(2)
    told(ledger, 0, [True, False])
    account = ledger.account()
    assert (account.right, account.wrong, account.lost) == (1, 1, 0)
    assert not account.clean


def test_a_second_answer_is_seen_and_counts_as_no_other() -> None:
    ledger = Ledger(100.0)
    ledger.open(2)
    told(ledger, 0, [True])
    told(ledger, 0, [True])
    account = ledger.account()
    assert (account.right, account.twice, account.lost) == (1, 1, 1)
    assert not account.clean


def test_accounts_add_up_bin_by_bin() -> None:
    whole = Account(calls=2, right=1, errors={"busy": 1}, longest_s=0.5, answered=[1])
    whole.add(Account(calls=3, right=2, wrong=1, errors={"busy": 1, "expired": 1}, longest_s=0.1, answered=[0, 2]))
    assert whole == Account(calls=5, right=3, wrong=1, errors={"busy": 2, "expired": 1}, longest_s=0.5, answered=[1, 2])


def test_an_account_is_a_value_of_its_own() -> None:
    ledger = Ledger(0.0)
    before = ledger.account()
    ledger.open(1)
    told(ledger, 0, [True], 0.0, 10 * BIN_S)
    assert before == Account()
