"""Ctrl-C lets the epoch end, so that training can be saved and resumed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def finish_epoch_on_interrupt(on_interrupt: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the epoch; a second one stops at once.

    Outside the main thread, which alone receives signals, nothing changes.

    Args:
        on_interrupt: called at the first signal, to say that the epoch is being finished.

    Yields:
        whether to stop, for the argument `stop` of `train`.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        on_interrupt()

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
