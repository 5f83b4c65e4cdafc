"""Stop signals to the main process."""

import os
import signal

import pytest

from instseg.core import stopping
from instseg.core.stopping import Stop

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_wish_and_the_handlers_before_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    wish = Stop(at_once=False)
    with wish.handled():
        os.kill(os.getpid(), number)
        assert wish.asked
    assert signal.getsignal(number) is before


def test_signals_that_come_together_are_one_wish() -> None:
    """`timeout` signals its child and then the group; systemd sends SIGHUP after SIGTERM."""
    wish = Stop(at_once=False)
    with wish.handled():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
    assert wish.asked


def test_a_later_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_WISH", 0.0)
    wish = Stop(at_once=False)
    with wish.handled():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_where_nothing_is_lost_the_first_signal_stops_and_its_echo_does_not() -> None:
    wish = Stop(at_once=False)
    with wish.handled():
        with pytest.raises(KeyboardInterrupt), wish.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # while it is being handled
        with pytest.raises(KeyboardInterrupt), wish.at_once():
            raise AssertionError("not reached")


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        wish = Stop(at_once=False)
        with wish.handled():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not wish.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_held_back_is_raised_at_the_end_of_the_block() -> None:
    stop, done = Stop(), []
    with stop.handled(), pytest.raises(KeyboardInterrupt):
        with stop.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("written")
        done.append("not reached")
    assert done == ["written"]


def test_an_exchange_within_an_evaluation_is_finished_first() -> None:
    wish, done = Stop(at_once=False), []
    with wish.handled(), pytest.raises(KeyboardInterrupt), wish.at_once():
        with wish.held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("exchanged")
        done.append("not reached")
    assert done == ["exchanged"]
