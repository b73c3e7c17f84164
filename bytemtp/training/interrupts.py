"""Ctrl-C and SIGTERM that let the work in hand be finished and saved."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Within it, the first SIGINT or SIGTERM only sets `signal`, so that a step can end; a second SIGINT kills."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        # Python allows only the main thread to do this; a trainer in another one is not stopped by signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
