"""A long wait is called back once, after one to two intervals."""

from __future__ import annotations

from lossd.engine.long_waits import LONG_S, LongWaits


def test_a_long_wait_is_called_back_once() -> None:
    waiting, called = LongWaits(), []
    for name in ("leaves at once", "leaves later", "stays"):
        waiting.add(name, lambda name=name: called.append(name))
    waiting.remove("leaves at once")
    waiting.check(100.0)
    assert called == [], "it has not waited for a whole spell yet"
    waiting.remove("leaves later")
    waiting.check(100.0 + LONG_S / 2)
    assert called == [], "looked too soon"
    for spell in (1, 2, 3):
        waiting.check(100.0 + spell * LONG_S)
    assert called == ["stays"]
    waiting.remove("stays")


def test_a_later_wait_has_its_own_time() -> None:
    waiting, called = LongWaits(), []
    waiting.check(50.0)
    waiting.add("late", lambda: called.append("late"))
    waiting.check(50.0 + LONG_S)
    assert called == []
    waiting.check(50.0 + 2 * LONG_S)
    assert called == ["late"]
