"""Ctrl-C, SIGTERM and SIGHUP during training: finish the update, save, then stop."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from instseg.data.workers import STOP_SIGNALS

# Seconds within which further signals are the same wish: `timeout` sends its signal twice, and a launcher passes on to
# its processes what their group has received.
SAME_WISH = 2.0


class Interrupt:
    """Turns the first stop signal into a wish, ``asked``, that the loop grants after the update under way.

    One that follows later raises KeyboardInterrupt wherever the run is; what was saved before stays.
    """

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False
        self._since = 0.0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._since < SAME_WISH:
            return
        again, self.asked, self._since = self.asked, True, now
        if again or self._at_once:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
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
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
