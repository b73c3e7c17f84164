"""Is every loss and gradient norm finite?  Noted where they are computed, read when somebody waits for them anyway.

Reading a number from a CUDA device waits until the device has done all that it was given, so a trainer that looks at
every loss keeps it from working ahead.  Instead the first bad step is kept on the device.  Whatever is written later
(a line, a checkpoint) reads it first, so nothing that came after a bad step is ever kept.

Try:  python -c "import torch; from bytemtp.training.watch import Watch; watch = Watch(torch.device('cpu'))
      watch.note(1, torch.tensor(2.0), torch.tensor(torch.nan)); print(watch.read())"
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Notes:
    """What is known once the device has been waited for."""

    norm: float
    """gradient norm of the last step"""
    bad_step: int
    """number of the first step (from 1) whose loss or gradient norm is not finite; 0 if there is none"""
    bad_loss: float
    bad_norm: float


class Watch:
    """Keeps the last norm, and the first step that went wrong, on a device."""

    def __init__(self, device: torch.device) -> None:
        self._bad = torch.zeros(3, dtype=torch.float64, device=device)
        self._norm: Tensor | None = None

    def note(self, step: int, loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> None:
        """Of step number `step`, from 1.  Waits for nothing."""
        now = torch.stack([torch.full_like(self._bad[0], step), loss.double(), norm.double()])
        is_first = ~now.isfinite().all() & (self._bad[0] == 0)
        self._bad = torch.where(is_first, now, self._bad)
        self._norm = now[2]

    def read(self) -> Notes | None:
        """Waits for the device; None if there is nothing new."""
        if self._norm is None:
            return None
        norm, step, bad_loss, bad_norm = torch.cat([self._norm[None], self._bad]).tolist()
        self._norm = None
        return Notes(norm, int(step), bad_loss, bad_norm)
