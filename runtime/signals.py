"""What happens when the system asks to stop? It is said at once, and the program ends as soon as that loses nothing."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Self

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}  # exit status of a program that was asked to stop
ONCE = 1.0  # seconds within which two are one: what a terminal sends to all processes, torchrun sends to its own again


class StopSignals(ContextDecorator):
    """Hears SIGTERM and Ctrl-C within its block, or within the function that it decorates.

    The first one raises SystemExit wherever the program is, so that nothing unfinished is left behind; within
    `postponed` it only sets `heard`, for the block to look at. A second one ends the process on the spot.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self._heard_at, self._postponing = 0.0, False

    def __enter__(self) -> Self:
        self.heard = None
        self._before = {number: signal.signal(number, self._hear) for number in STATUS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def postponed(self, yes: bool = True) -> Iterator[None]:
        """A signal waits for the end of the block, which may look at `heard` before; if not `yes`, for nothing."""
        before, self._postponing = self._postponing, yes
        try:
            self._leave_unless_postponed()
            yield
        finally:
            self._postponing = before
        self._leave_unless_postponed()

    def _leave_unless_postponed(self) -> None:
        if self.heard is not None and not self._postponing:
            self.leave()

    def _hear(self, number: int, frame: object) -> None:
        if self.heard is None:
            self.heard, self._heard_at = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":  # of several processes one is enough
                text = "saving, then stopping" if self._postponing else "stopping"
                os.write(2, f"\n{signal.Signals(number).name}: {text}\n".encode())  # `print` may be at work just now
            self._leave_unless_postponed()
        elif time.monotonic() - self._heard_at > ONCE:
            os._exit(STATUS[number])

    def leave(self) -> None:
        """Raise SystemExit with the status of the signal that was heard, if any, else that of SIGTERM."""
        raise SystemExit(STATUS[self.heard or signal.SIGTERM])
