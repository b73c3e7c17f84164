"""Ctrl-C, SIGTERM, a closed terminal, a batch system's notice: the work in hand is finished and saved first."""

import signal
import threading
from types import FrameType
from typing import Any

TO_STOP = (signal.SIGINT, signal.SIGTERM)
NOTICES = (signal.SIGHUP, signal.SIGUSR1)
"""Come more than once, from shell and terminal or from each step of a batch job, and may be ignored (nohup)."""


class Interrupts:
    """Within it, the first signal only sets `signal`, so that a step can end; a second SIGINT, or SIGTERM, kills.

    SIGTERM after SIGINT does not: torchrun sends it to its processes after a Ctrl-C that they have had, too.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        # Python allows only the main thread to do this; a trainer in another one is not stopped by signals.
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in NOTICES if signal.getsignal(number) != signal.SIG_IGN]
            for number in (*TO_STOP, *heard):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if number in TO_STOP:
            signal.signal(number, signal.SIG_DFL)
