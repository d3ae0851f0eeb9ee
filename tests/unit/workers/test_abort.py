"""The word that stops one generation."""

import threading

from turnmill.workers.turn.abort import Abort


def test_who_waits_is_told_when_it_is_set() -> None:
    abort, told = Abort(), threading.Event()
    with abort.telling(told.set):
        assert not told.is_set()
        abort.set()
        assert told.is_set()
    assert abort.is_set()


def test_who_comes_late_is_told_at_once() -> None:
    abort, told = Abort(), threading.Event()
    abort.set()
    with abort.telling(told.set):
        assert told.is_set()


def test_who_has_left_is_not_told() -> None:
    abort, told = Abort(), threading.Event()
    with abort.telling(told.set):
        pass
    abort.set()
    assert not told.is_set()
