"""Ctrl-C and SIGTERM during training: finish the update, save, then stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a wish, ``asked``, that the loop grants after the update under way.

    A second one raises KeyboardInterrupt wherever the run is; what was saved before stays.
    """

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._at_once:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Handle the signals here; outside the main thread Python does not allow it and nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
