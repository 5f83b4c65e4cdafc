"""Ctrl-C, SIGTERM and SIGHUP during prediction: stop at once, but never within the writing of results."""

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


class Stop:
    """Turns the first stop signal into KeyboardInterrupt, where none is held back."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._holding = self._pending = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is not None and now - self._since < SAME_WISH:
            return
        again, self._since = self._since is not None, now
        if self._holding and not again:
            self._pending = True
        else:
            raise KeyboardInterrupt

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
    def held_back(self) -> Iterator[None]:
        """Within this a signal waits until the end of the block; one more, later than ``SAME_WISH``, does not."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt
