"""What a holder may believe, on a clock made of numbers."""

from __future__ import annotations

import pytest

from aikoryu.bus.tenure import Decision, Phase, Tenure


def test_it_is_renewed_after_a_third_and_ends_before_the_server_ends_it() -> None:
    tenure = Tenure(ttl_s=30, sent_at=100.0)
    assert tenure.decide(100.5) == Decision(Phase.HELD, 9.5)
    assert tenure.decide(110.0) == Decision(Phase.DUE, 6.0)
    assert tenure.decide(125.0) == Decision(Phase.DUE, 2.0)
    assert tenure.expires_at == 127.0
    assert tenure.decide(126.9).phase is Phase.DUE
    assert tenure.decide(127.0).phase is Phase.LOST
    assert "27 s of 30" in tenure.reason


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    tenure = Tenure(ttl_s=30, sent_at=100.0)
    tenure.decide(125.0)
    tenure.renewed(sent_at=112.0)
    assert tenure.expires_at == 139.0
    assert tenure.decide(125.0) == Decision(Phase.DUE, 6.0)
    tenure.renewed(sent_at=124.0)
    tenure.renewed(sent_at=112.0)
    assert tenure.decide(125.0) == Decision(Phase.HELD, 9.0)


def test_a_renewal_without_an_answer_is_tried_again_and_extends_nothing() -> None:
    tenure = Tenure(ttl_s=30, sent_at=100.0)
    tenure.unanswered(116.0)
    assert tenure.decide(116.0) == Decision(Phase.HELD, 3.0)
    assert tenure.decide(119.0).phase is Phase.DUE
    tenure.unanswered(126.0)
    assert tenure.decide(126.0) == Decision(Phase.HELD, 1.0)
    assert tenure.decide(127.0).phase is Phase.LOST


def test_what_is_lost_stays_lost() -> None:
    tenure = Tenure(ttl_s=30, sent_at=100.0)
    tenure.decide(127.0)
    tenure.renewed(sent_at=126.0)
    assert tenure.decide(127.5) == Decision(Phase.LOST, 0.0)
    first = tenure.reason
    tenure.lose("another reason")
    assert tenure.reason == first


@pytest.mark.parametrize(("jump_to", "reason"), [(5_000.0, "no renewal"), (104.0, "clock went back by 1 s")])
def test_a_clock_that_jumps_ends_it(jump_to: float, reason: str) -> None:
    tenure = Tenure(ttl_s=30, sent_at=100.0)
    tenure.decide(105.0)
    assert tenure.decide(jump_to).phase is Phase.LOST
    assert reason in tenure.reason
    assert tenure.decide(105.0).phase is Phase.LOST
