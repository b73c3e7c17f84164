"""What is decided for the user: dtype, attention backend and torch.compile.

Every choice is shown with its reason.  What "auto" became is written into RUN/config.toml, for resumed runs to follow.
"""

import os
import shutil

import torch

from bytemtp.common.runtime import Choice, log, pick_dtype
from bytemtp.common.settings import Settings, changed
from bytemtp.model.model import ByteMTP

COMPILE_SECONDS = 40
"""Wall time that compiling costs on two CPU cores."""
COMPILE_SAVES = 0.1
"""Share of a step that compiled layers save on a CPU; measured 14 % (nano) and 7 % (tiny) of a bfloat16 step's time."""
FLOPS_PER_THREAD = 3e10
"""Training speed of one CPU thread, float32, roughly; good enough to tell seconds from hours."""


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
    if not has_compiler():
        return Choice(False, "no C++ compiler found")
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


def has_compiler() -> bool:
    """Whether torch.compile will find a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++") if name)
