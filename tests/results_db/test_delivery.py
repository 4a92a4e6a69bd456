"""What Redis is told, step by step, without Redis."""

from __future__ import annotations

from results_db.queue.delivery import Doorman


def test_what_is_missing_is_sent_and_what_must_wait_goes() -> None:
    plan = Doorman().plan(["a", "b", "c"], ["c", "x"], set(), 0.0)
    assert plan.order == ("a", "b", "c")
    assert plan.send == ("a", "b")


def test_what_is_on_its_way_is_left_alone_for_a_while() -> None:
    doorman = Doorman(unclaimed_s=15.0)
    assert doorman.plan(["a", "b"], ["b"], {"a"}, 100.0).order == ("b",)
    assert doorman.plan(["a", "b"], ["b"], {"a"}, 114.9).send == ()
    late = doorman.plan(["a", "b"], ["b"], {"a"}, 115.0)
    assert (late.order, late.send) == (("a", "b"), ("a",))
    assert doorman.plan(["a", "b"], ["a", "b"], {"a"}, 115.1).send == ()
    assert doorman.plan(["a", "b"], ["b"], {"a"}, 116.0).order == ("b",), "taken again: the time begins anew"


def test_the_time_begins_anew_when_it_was_seen_elsewhere_in_between() -> None:
    doorman = Doorman(unclaimed_s=15.0)
    doorman.plan(["a"], [], {"a"}, 0.0)
    doorman.plan([], [], {"a"}, 10.0)
    assert doorman.plan(["a"], [], {"a"}, 20.0).send == ()
    assert doorman.plan(["a"], [], {"a"}, 35.0).send == ("a",)
