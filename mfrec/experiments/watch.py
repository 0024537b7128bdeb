"""The watch: every process shows that it lives, and ends when another one has died or stands still.

A thread of each process counts up in torch's store every second.  A process whose count has not changed for
`SILENCE` seconds is dead, stopped or cut off.  Then one of the others says which, and all end.  The last checkpoint
stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple

import torch.distributed as dist

from mfrec.errors import InputError
from mfrec.processes import Processes

INTERVAL = 1.0
# Seconds without a sign of life: after eighteen, or after four once a collective operation has failed.
SILENCE, SUSPICIOUS_SILENCE = 18.0, 4.0
# The exit status if another process failed, and that of an input error.
FAILED, INPUT_ERROR = 3, 2
# Instead of the count of a process that has raised an exception, and of its error if the process itself says it.
FAILED_SIGN, SAID = "failed", "said"


class Place(NamedTuple):
    """Where a process runs."""

    host: str
    pid: int


class Watch:
    """Shows that this process lives, and ends it if another one does not.

    Use as a context manager.  An exception in its block ends the other processes too.  An `InputError` is said once: by
    the first process, which usually has it as well, else by one of the others.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        # A connection of its own: the main thread may wait for an answer on torch's.
        prefix = f"mfrec/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.PrefixStore(prefix, dist.TCPStore(address, port, is_master=False))  # type: ignore[attr-defined]
        self.here = Place(socket.gethostname(), os.getpid())
        self.store.set(f"place/{processes.index}", f"{self.here.host} {self.here.pid}")
        self.store.set(f"life/{processes.index}", "0")
        self.places = [self._place(index) for index in range(processes.count)]
        # Set when a collective operation has failed, when the launcher wants the process to end, and when it is done.
        self.suspicious, self.ending, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self.before: Any = None  # the handler of SIGTERM
        self.thread = threading.Thread(target=self._run, name="mfrec-watch", daemon=True)

    def _place(self, index: int) -> Place:
        host, pid = self.store.get(f"place/{index}").decode().split()
        return Place(host, int(pid))

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            # The launcher ends all processes when one has died, before this one could say which.
            self.before = signal.signal(signal.SIGTERM, lambda number, frame: self.ending.set())
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None:
            return
        index = self.processes.index
        is_input = isinstance(error, InputError)
        self.store.set(f"error/{index}", "" if not is_input else str(error) if index else SAID)
        self.store.set(f"life/{index}", FAILED_SIGN)
        if index and is_input:
            raise SystemExit(INPUT_ERROR)

    def stop(self) -> None:
        """End the watch: this process is done."""
        if not self.stopped.is_set():
            self.stopped.set()
            self.thread.join()
            if self.before is not None:
                signal.signal(signal.SIGTERM, self.before)

    def wait_for_failure(self) -> None:
        """Wait until the watch has ended this process; returns if it finds nothing."""
        self.suspicious.set()
        self.thread.join(2 * SILENCE)

    def _run(self) -> None:
        count, signs = 0, [""] * self.processes.count
        changed = [time.monotonic()] * self.processes.count
        ending_since: float | None = None
        while not self.stopped.wait(INTERVAL):
            count += 1
            try:
                self.store.set(f"life/{self.processes.index}", str(count))
                seen = [sign.decode() for sign in self.store.multi_get([f"life/{n}" for n in range(len(signs))])]
            except RuntimeError:
                self._end("the store of the launcher does not answer: its host is gone or cut off", [])
            now = time.monotonic()
            changed = [now if a != b else time for a, b, time in zip(seen, signs, changed, strict=True)]
            signs = seen
            hurried = self.suspicious.is_set() or self.ending.is_set()
            silence = SUSPICIOUS_SILENCE if hurried else SILENCE
            silent = [n for n, time in enumerate(changed) if now - time > silence]
            if silent:
                self._report(silent, signs)
            elif ending_since is not None and min(changed) > ending_since:
                # All have shown since then that they live: the launcher was asked to end.
                self._end("", [])
            elif self.ending.is_set() and ending_since is None:
                ending_since = now  # signs that change later are younger than this

    def _report(self, silent: list[int], signs: list[str]) -> None:
        """Say which processes do not respond, or which one failed, and end this one."""
        living = set(range(self.processes.count)) - set(silent)
        stopped = [n for n in silent if signs[n] != FAILED_SIGN]
        message = ""
        if stopped and self.processes.index == min(living):
            message = (
                f"{self._names(stopped)} of {self.processes.count} does not respond: it was killed, has stopped or is "
                "cut off; the last checkpoint is kept, resume from it"
            )
        elif self.processes.index == min(living):
            error = self.store.get(f"error/{silent[0]}").decode()
            message = "" if error == SAID else f"{self._names(silent)} failed: {error or 'see above'}"
        self._end(message, stopped)

    def _names(self, indices: list[int]) -> str:
        return "process " + ", ".join(f"{n} ({self.places[n].host}, pid {self.places[n].pid})" for n in indices)

    def _end(self, message: str, silent: list[int]) -> None:
        if message:
            print(f"mfrec: {message}", file=sys.stderr, flush=True)
        for n in silent:
            # A stopped process ignores the launcher's request to end.
            if self.places[n].host == self.here.host:
                _kill(self.places[n].pid)
        os._exit(FAILED)


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):  # it has ended already
        os.kill(pid, signal.SIGKILL)
