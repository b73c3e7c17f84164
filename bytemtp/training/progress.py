"""What a run tells about itself: metrics.jsonl, a progress bar or plain lines, and TensorBoard if asked for.

A line of metrics.jsonl has `split` "train" (averages over the steps since the last such line) or "valid", and the keys
of `MetricsLine` plus `bpb`, the first of `bpb_per_head`: bits per byte of the next byte.  Averages are over predicted
bytes.  A head that had nothing to predict has null.

Try:  tail -n 1 RUN/metrics.jsonl
"""

import json
import math
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file, writing
from bytemtp.common.jsonl import append_json_line, read_lines
from bytemtp.common.runtime import in_a_row, log
from bytemtp.common.settings import TrainConfig

KEPT = "; what is there is kept: make room and go on with --resume"


@dataclass(frozen=True)
class MetricsLine:
    """One object of metrics.jsonl."""

    step: int
    """optimiser steps done"""
    split: Literal["train", "valid"]
    loss: float | None
    """mean over the heads that learn of the cross-entropy, in nats a predicted byte or end of a document"""
    bpb_per_head: list[float | None]
    """bits a predicted byte, by future offset; ends of documents are not counted"""
    bpb_with_ends: float | None
    """head 1's bits a predicted byte or end of a document; what `bpb` is in older runs"""
    lr: float
    """learning rate of the last step; 0 where none has been done since the start or the resumption"""
    grad_norm: float | None
    """gradient norm of the last step, before clipping; null before the first"""
    bytes_seen: int
    """input bytes trained on"""
    epoch: int
    """how many times all of the data has been seen; 0 in the first pass"""
    bytes_per_s: float
    """input bytes a second: of training steps since the last line, or of this validation"""
    elapsed_s: float
    """seconds of training so far, validation and saving included"""
    peak_memory_bytes: int
    """most memory held so far: of the device on CUDA, else of the process"""
    mfu: float | None = None
    """share of what the device could compute that training needed; left out where that is not known"""
    accepted_per_head: list[float | None] | None = None
    """of a validation: mean probability, at temperature 1 after the true bytes, that head 1 accepts a head's draft;
    null for head 1, left out where no head drafts"""
    order_loss: float | None = None
    """of training with an order head, its cross-entropy in nats; left out where there is none"""

    def as_dict(self) -> dict[str, Any]:
        optional = ("mfu", "accepted_per_head", "order_loss")
        known = {name: value for name, value in asdict(self).items() if name not in optional or value is not None}
        return known | {"bpb": self.bpb_per_head[0]}

    def __str__(self) -> str:
        bpb = in_a_row(self.bpb_per_head)
        if self.accepted_per_head:
            bpb += f"  accepted {in_a_row(self.accepted_per_head, 2)}"
        loss = "-" if self.loss is None else f"{self.loss:.4f}"
        speed = f"{self.bytes_per_s / 1000:.1f} kB/s"
        used = "" if self.mfu is None else f"  mfu {self.mfu:.1%}"
        return f"{self.split:5} {self.step:>6}  loss {loss}  bpb {bpb}  {speed}{used}  epoch {self.epoch}"


def finite(values: Sequence[float]) -> list[float | None]:
    """None for what is no number: JSON has no nan."""
    return [value if math.isfinite(value) else None for value in values]


def peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):  # not Linux, or one that leaves it out
        return status_bytes("VmHWM")  # the other is at least that of the program that started this one
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def status_bytes(field: str) -> int:
    """A field of Linux's /proc/self/status, which counts in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


class Progress:
    """Writes the lines of one run, from `step` on.  A context manager.

    Lines beyond `step` (a resumed run goes back to its checkpoint) are dropped, so no step is there twice.
    """

    def __init__(self, run: Path, train: TrainConfig, step: int, elapsed_s: float) -> None:
        self._metrics = run / "metrics.jsonl"
        self._by_minutes = train.minutes > 0
        self._total = 60 * train.minutes if self._by_minutes else train.steps
        with writing(run, KEPT):
            drop_lines_after(self._metrics, step)
            self._board = open_board(run / "tensorboard", step) if train.tensorboard else None
        self._bar = self._open_bar(elapsed_s if self._by_minutes else float(step)) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            with writing(self._metrics.with_name("tensorboard"), KEPT):
                self._board.close()

    def advance(self, step: int, elapsed_s: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            done = min(self._total, elapsed_s if self._by_minutes else step)
            self._bar.update(done - self._bar.n)

    def write(self, line: MetricsLine) -> None:
        """Add a line to metrics.jsonl and TensorBoard, and show it.  UserError if it cannot be written."""
        with writing(self._metrics, KEPT):
            append_json_line(self._metrics, line.as_dict())
            if self._board is not None:
                self._write_board(self._board, line)
        if self._bar is None:
            self.say(f"{line}{self._remaining(line)}")
        elif line.split == "valid":
            self.say(str(line))
        else:
            bits = in_a_row(line.bpb_per_head[:1])
            speed = f"{line.bytes_per_s / 1000:.1f} kB/s"
            self._bar.set_postfix_str(f"loss {line.loss:.4f}  bpb {bits}  {speed}  epoch {line.epoch}")

    def has_validation(self, step: int) -> bool:
        """Whether a validation of that step is written down."""
        return any((line["step"], line.get("split")) == (step, "valid") for line in read_lines(self._metrics))

    def say(self, message: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is None:
            log(message)
            return
        with suppress(OSError):  # as in `log`
            self._bar.write(message, file=sys.stderr)

    def _open_bar(self, done: float) -> "tqdm[Any]":
        unit = "s" if self._by_minutes else "step"
        layout = "{percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} " + unit + " [{elapsed}<{remaining}]{postfix}"
        done = min(done, self._total)  # of a run that is over, more may be done; tqdm would then forget its total
        return tqdm(total=self._total, initial=done, bar_format=layout, dynamic_ncols=True, file=sys.stderr)

    def _remaining(self, line: MetricsLine) -> str:
        done = line.elapsed_s if self._by_minutes else line.step
        if line.split == "valid" or not done:
            return ""
        seconds = int(line.elapsed_s * max(0.0, self._total / done - 1))
        return f"  {line.step}/{self._total} steps" * (not self._by_minutes) + f"  eta {tqdm.format_interval(seconds)}"

    def _write_board(self, board: Any, line: MetricsLine) -> None:
        for name, value in line.as_dict().items():
            if isinstance(value, int | float) and name != "step":
                board.add_scalar(f"{line.split}/{name}", value, line.step)
        for i, bits in enumerate(line.bpb_per_head):
            if bits is not None:
                board.add_scalar(f"{line.split}/bpb_head_{i + 1}", bits, line.step)


class NoProgress(Progress):
    """That of a process that is not the first: it writes no file."""

    def __init__(self) -> None:
        self._bar = self._board = None

    def write(self, line: MetricsLine) -> None:
        """Does nothing."""


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines of metrics.jsonl up to `step`.  What a kill or a power cut has spoilt goes, too."""
    data = path.read_bytes() if path.exists() else b""
    lines = [line.strip(b"\0") for line in data.split(b"\n")[:-1]]  # zeros: space that a power cut left unwritten
    steps = [step_of(line) for line in lines]
    if damaged := steps.count(None):
        log(f"{path}: {damaged} damaged lines are left out")
    kept = b"".join(line + b"\n" for line, at in zip(lines, steps, strict=True) if at is not None and at <= step)
    if kept != data:
        write_file(path, kept)


def step_of(line: bytes) -> int | None:
    """Step of a line of metrics.jsonl; None if it is none."""
    try:
        return int(json.loads(line.decode())["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def open_board(folder: Path, step: int) -> Any:
    """A TensorBoard writer.  UserError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("train.tensorboard needs the package tensorboard; pip install 'bytemtp[tensorboard]'") from None
    return SummaryWriter(str(folder), purge_step=step + 1)
