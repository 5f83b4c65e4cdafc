"""Ctrl-C, SIGTERM and SIGHUP: stop at once, or as soon as what is under way is finished and saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
# Seconds within which further signals are the same wish: `timeout` sends its signal twice, and a launcher passes on to
# its processes what their group has received.
SAME_WISH = 2.0


class Stop:
    """Turns the first stop signal into KeyboardInterrupt, or into a wish that the program grants later.

    One that follows later raises KeyboardInterrupt wherever the program is; what was saved before stays.

    Attributes:
        asked: whether a signal has come.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        """``at_once=False``: the first signal only sets ``asked``, except within :meth:`at_once`."""
        self.asked = False
        self._at_once = at_once
        self._pending = False
        self._since = 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._since < SAME_WISH:
            return
        again, self.asked, self._since = self.asked, True, now
        if again or self._at_once:
            raise KeyboardInterrupt
        self._pending = True

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals here; outside the main thread Python does not allow it and nothing changes.

        A SIGHUP that is ignored, as under ``nohup``, stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in STOP_SIGNALS:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this (an evaluation, which changes nothing) the first signal raises KeyboardInterrupt."""
        if self.asked:
            raise KeyboardInterrupt
        with self._raising(True):
            yield

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Within this a signal waits until the end of the block; one more, later than ``SAME_WISH``, does not."""
        with self._raising(False):
            yield
        if self._pending and self._at_once:
            self._pending = False
            raise KeyboardInterrupt

    @contextmanager
    def _raising(self, at_once: bool) -> Iterator[None]:
        before, self._at_once = self._at_once, at_once
        try:
            yield
        finally:
            self._at_once = before
