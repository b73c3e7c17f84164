"""What every command needs: device and dtype, chosen with a visible reason, a log and a progress bar.

Choices are never silent: each `pick_*` returns the value together with the reason, and commands print both.
"""

import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bytemtp.common.errors import UserError

QUIET_SECONDS = 30
"""Between two lines of progress where nobody watches a terminal."""


class Choice(NamedTuple):
    """A decision taken for the user, with the reason to show."""

    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


def log(message: str) -> None:
    """Print for people: to standard error, so that standard output holds only results.

    Where nobody can read it any more (a closed terminal, a full disk), work goes on without.
    """
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def pick_device(requested: str = "auto") -> Choice:
    """CUDA if there is one, else the CPU.  UserError if the requested device is not there.

    A CUDA device becomes the current one: libraries put there what names no device, and its random numbers are those
    that checkpoints hold.
    """
    choice = find_device(requested)
    if choice.value.type == "cuda":
        torch.cuda.set_device(choice.value)
    return choice


def find_device(requested: str) -> Choice:
    if requested == "auto":
        if torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
            return Choice(device, torch.cuda.get_device_name(device))
        return Choice(torch.device("cpu"), f"no CUDA device; {torch.get_num_threads()} threads")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise UserError(f"unknown device {requested!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {requested!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise UserError(f"device {requested!r} is not available; use cpu or auto")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return Choice(device, "as asked")


def moved(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device is at."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def pick_dtype(requested: str, device: torch.device) -> Choice:
    """Arithmetic of the matrix products; weights and optimiser stay in float32 either way.

    bfloat16 pays only where the hardware multiplies it: measured 2.3x float32's matrix-product rate on a CPU with
    AVX512-BF16, and slower than float32 where it is emulated (NOTES.md).
    """
    if requested != "auto":
        return Choice(getattr(torch, requested), "as asked")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Choice(torch.bfloat16 if fast else torch.float32, "CUDA device " + ("has" if fast else "lacks") + " it")
    fast = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    reason = f"processor {'has' if fast else 'lacks'} AVX512-BF16 or AMX"
    return Choice(torch.bfloat16 if fast else torch.float32, reason)


def progress(total: int, unit: str, what: str, done: int = 0) -> Any:
    """A bar with the time that is left, on standard error."""
    seconds = 0.5 if sys.stderr.isatty() else QUIET_SECONDS
    return tqdm(
        total=total, initial=done, unit=f" {unit}", desc=what, mininterval=seconds, maxinterval=seconds, file=sys.stderr
    )


def in_a_row(values: Iterable[float | None], digits: int = 3) -> str:
    """Numbers with so many digits behind the point, and "-" for what is None or nan."""
    return " ".join("-" if value is None or math.isnan(value) else f"{value:.{digits}f}" for value in values)


def byte_progress(what: str, total: int | None = None) -> Any:
    """A bar of bytes on a terminal; elsewhere nothing."""
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None, file=sys.stderr)
