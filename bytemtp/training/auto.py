"""What is decided for the user: preset, dtype, attention backend and torch.compile.

Every choice is shown with its reason.  What "auto" became is written into RUN/config.toml, for resumed runs to follow.
"""

import math
import os
import shutil
import statistics
import sys
import time

import torch

from bytemtp.common.errors import UserError
from bytemtp.common.presets import MINUTES, preset
from bytemtp.common.runtime import Choice, log, pick_dtype
from bytemtp.common.settings import Settings, TrainConfig, changed
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import backward

COMPILE_SECONDS = 25
"""Wall time that compiling costs on two CPU cores, rows of two lengths."""
COMPILE_SAVES = 0.3
"""Share of a step that compiled layers save on a CPU, roughly; good enough to tell seconds from minutes."""
NO_COMPILER = "there is no C++ compiler (CXX, else g++)"
FLOPS_PER_THREAD = 3e10
"""Training speed of one CPU thread, float32, roughly; good enough to tell seconds from hours."""

REFERENCE = "tiny"
"""The preset whose step is timed to see how fast a machine is."""
REFERENCE_BYTES_PER_S = 19_000
"""What `measure_speed` says of it on the two cores that `presets.MINUTES` counts the minutes of (an Intel Xeon)."""


def pick_preset(minutes: float, device: torch.device) -> Choice:
    """The preset that is best in so many minutes on this machine, whose speed is measured for a second or two."""
    speed = measure_speed(preset(REFERENCE), device)
    worth = minutes * speed / REFERENCE_BYTES_PER_S
    name = min(MINUTES, key=lambda name: abs(math.log(MINUTES[name] / worth)))
    machine = (
        f"{REFERENCE} trains at {speed / 1000:.1f} kB/s here, {speed / REFERENCE_BYTES_PER_S:.1f} times two cores'"
    )
    return Choice(name, f"{machine}, so {minutes:g} minutes are worth {worth:.1f} of theirs")


def measure_speed(settings: Settings, device: torch.device) -> float:
    """Bytes a second of forward and backward, not compiled: the median of some steps after a few to warm up."""
    model = ByteMTP(settings.model).to(device)
    model.use(dtype=pick_dtype("auto", device).value)
    train, times = settings.train, []
    ids = torch.zeros(train.batch_size, train.seq_len + settings.model.n_future, dtype=torch.int64, device=device)
    for _ in range(12):
        began = time.perf_counter()
        float(backward(model, ids, torch.zeros_like(ids), far_rows=train.far_rows).mean)  # waits for the device
        times.append(time.perf_counter() - began)
    return train.batch_size * train.seq_len / statistics.median(times[4:])


def choose(settings: Settings, model: ByteMTP, device: Choice) -> Settings:
    """Decide what is left to "auto", set the model up, and print each choice with its reason."""
    dtype = pick_dtype(settings.train.dtype, device.value)
    compiled = pick_compile(settings, device.value, model.num_parameters())
    resolved = {"train.dtype": str(dtype.value).removeprefix("torch."), "train.compile": str(compiled.value).lower()}
    settings = changed(settings, **resolved)
    choices = {"device": device, "dtype": dtype, "attention": apply(settings, model), "torch.compile": compiled}
    for name, choice in choices.items():
        log(f"{name}: {choice}")
    log(f"parameters: {model.num_parameters():,}")
    return settings


def apply(settings: Settings, model: ByteMTP, *, compiled: bool = True) -> Choice:
    """Run the model as the resolved settings say, or uncompiled all the same.  Returns the attention backend."""
    train = settings.train
    return model.use(
        dtype=getattr(torch, train.dtype),
        compiled=compiled and train.compile == "true",
        checkpointing=train.activation_checkpointing,
    )


def pick_compile(settings: Settings, device: torch.device, parameters: int) -> Choice:
    """Whether to compile the transformer layers: always on CUDA, on a CPU if the run is long enough to pay for it."""
    if settings.train.compile != "auto":
        return Choice(settings.train.compile == "true", "as asked")
    if not has_compiler(device):
        return Choice(False, NO_COMPILER)
    if device.type == "cuda":
        return Choice(True, "CUDA device")
    saved = COMPILE_SAVES * planned_seconds(settings, parameters)
    if saved < 2 * COMPILE_SECONDS:
        return Choice(False, f"would save some {saved:.0f} s and cost {COMPILE_SECONDS} s")
    return Choice(True, f"saves some {saved:.0f} s for {COMPILE_SECONDS} s of compiling")


def planned_seconds(settings: Settings, parameters: int) -> float:
    """Rough length of the whole run on this CPU: 6 FLOPs a parameter and byte (Kaplan et al. 2020, section 2.1)."""
    train = settings.train
    if train.minutes:
        return 60 * train.minutes
    flops = 6.0 * parameters * train.steps * train.batch_size * train.seq_len
    return flops / (FLOPS_PER_THREAD * torch.get_num_threads())


def check_compiler(train: TrainConfig, device: torch.device) -> None:
    """UserError if torch.compile is asked for on a CPU and will find no compiler."""
    if train.compile == "true" and device.type == "cpu" and not has_compiler(device):
        raise UserError(f"train.compile is true, but {NO_COMPILER}; install one, or set it to false")


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile will find a C++ compiler: for code that runs on a CPU it looks for a single name."""
    first = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    names = [first] if device.type == "cpu" else [first, "g++", "clang++", "c++"]
    return any(map(shutil.which, names))
