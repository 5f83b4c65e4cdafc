"""Ctrl-C, SIGTERM and SIGHUP while a verb starts, and wherever a verb does not handle them itself."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAME_WISH = 2.0  # seconds within which further signals are the same wish


def left_alone(number: int) -> bool:
    """Whether a signal stays ignored: SIGHUP under ``nohup``. A shell ignores SIGINT for its background jobs too, but
    whoever sends it to one means it."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


class Stopped:
    """Turns a stop signal into KeyboardInterrupt.

    Attributes:
        asked: whether a signal came: an import that is interrupted may end in another error.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked: as if it had not been handled
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.asked and now - self._since < _SAME_WISH:
            return
        self.asked, self._since = True, now
        raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals here, without a SIGHUP that is ignored. Outside the main thread Python does not allow it,
        and nothing changes."""
        try:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler is not None and not left_alone(number):
                    signal.signal(number, self._handle)
                    self._before[number] = handler
        except ValueError:
            pass
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}
