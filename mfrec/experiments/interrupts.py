"""Ctrl-C lets the epoch end, so that training can be saved and resumed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM during epochs into a request to stop; a second one stops at once.

    An instance is an argument `stop` of `train`, which listens while it goes over the ratings.  Reading data and
    measuring the result can be interrupted at once.  Outside the main thread, which alone receives signals, nothing
    changes.

    Args:
        on_interrupt: called at the first signal, to say that the epoch is being finished.
    """

    def __init__(self, on_interrupt: Callable[[], object] = lambda: None) -> None:
        self.on_interrupt = on_interrupt
        self.requested = False

    def __call__(self) -> bool:
        return self.requested

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals."""
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._request) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.on_interrupt()
