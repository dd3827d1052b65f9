"""What happens when the system asks the program to stop? It ends as soon as nothing is lost by that."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Self

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}  # exit status of a program that was asked to stop
REPEAT_SECONDS = 1.0  # a second signal within this time is the same one: torchrun repeats what the terminal sent


class StopSignals(ContextDecorator):
    """Handles SIGTERM and Ctrl-C within its block, or within the function that it decorates.

    The first signal raises SystemExit wherever the program is, so that nothing unfinished is left behind. Within
    `postponed` it only sets `received`, and the block decides when to stop. A second one ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at, self._postponing = 0.0, False

    def __enter__(self) -> Self:
        self.received = None
        self._before = {number: signal.signal(number, self._handle) for number in STATUS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def postponed(self, yes: bool = True) -> Iterator[None]:
        """A signal waits for the end of the block, which may look at `received`; with `yes` false, it doesn't wait."""
        before, self._postponing = self._postponing, yes
        try:
            self._leave_unless_postponed()
            yield
        finally:
            self._postponing = before
        self._leave_unless_postponed()

    def _leave_unless_postponed(self) -> None:
        if self.received is not None and not self._postponing:
            self.leave()

    def _handle(self, number: int, frame: object) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                text = "saving, then stopping" if self._postponing else "stopping"
                os.write(2, f"\n{signal.Signals(number).name}: {text}\n".encode())  # `print` isn't safe in a handler
            self._leave_unless_postponed()
        elif time.monotonic() - self._received_at > REPEAT_SECONDS:
            os._exit(STATUS[number])

    def leave(self) -> None:
        """Raise SystemExit with the status of the signal that was received, or that of SIGTERM if there was none."""
        raise SystemExit(STATUS[self.received or signal.SIGTERM])
