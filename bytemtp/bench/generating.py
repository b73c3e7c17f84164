"""Measurements of decoding, each run in a process of its own by worker.py.

All contestants of a shape have the same weights: a model drawn from seed 0, exported where transformers reads it.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bytemtp.bench.shapes import Shape
from bytemtp.common.runtime import pick_device
from bytemtp.common.settings import Topology
from bytemtp.common.vocab import EOT
from bytemtp.decoding.engines.select import make_engine
from bytemtp.decoding.generate import generate
from bytemtp.model.huggingface import export
from bytemtp.model.model import ByteMTP

PROMPT = bytes(np.random.default_rng(0).integers(0, 256, 64).tolist())
REPEATS = 3


def model_of(shape: Shape, n_future: int = 1, topology: Topology = "linear") -> ByteMTP:
    """Random weights that never end a document, so that all contestants write as many bytes."""
    model = ByteMTP(shape.config(n_future, topology)).eval().to(pick_device().value)
    with torch.no_grad():
        for unembed in model.unembed:
            nn.init.zeros_(unembed.get_parameter("weight")[EOT])
    return model


def ours_generate(shape: Shape, *, engine: str = "auto", new: int = 256) -> dict[str, Any]:
    """Plain greedy decoding by bytemtp."""
    model = model_of(shape)
    return _timed(lambda: generate(model, PROMPT, new, engine=engine).data, model, new)


def transformers_generate(shape: Shape, *, static: bool = False, new: int = 256) -> dict[str, Any]:
    """The same by transformers' `generate`; static: with its static cache, which it compiles where it can."""
    source = model_of(shape)
    llama = llama_of(source)
    extra = {"cache_implementation": "static"} if static else {}
    return _timed(lambda: continued(llama, PROMPT, new, **extra), source, new)


def llama_of(model: ByteMTP) -> Any:
    """The exported model, loaded by transformers."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "model")
        llama: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    return llama.to(model.device)


@torch.inference_mode()
def continued(llama: Any, prompt: bytes, new: int, **extra: Any) -> bytes:
    """Greedily, up to the end of the document."""
    ids = torch.tensor([[EOT, *prompt]], device=llama.device)
    options = dict(max_new_tokens=new, do_sample=False, pad_token_id=EOT, eos_token_id=EOT, **extra)
    out = llama.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return bytes(id_ for id_ in out[0, ids.shape[1] :].tolist() if id_ != EOT)


def _timed(run: Callable[[], bytes], model: ByteMTP, new: int) -> dict[str, Any]:
    times, data = [], b""
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        data = run()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    return {
        "step_s": seconds / new,
        "bytes_per_s": new / seconds,
        "digest": int(hashlib.sha256(data).hexdigest()[:8], 16),
        "parameters": model.num_parameters(),
    }


def passes(shape: Shape, *, n_future: int = 1, topology: Topology = "linear") -> dict[str, Any]:
    """Seconds of a pass over 1, 2, 4, 8, 16 ids behind 256, and of the drafts after one over 8."""
    model, context = model_of(shape, n_future, topology), 256
    runner = make_engine("auto", model, 1, context + 64, 16)
    random, ahead = np.random.default_rng(0), np.zeros((1, context + 64 + n_future), dtype=np.int64)
    runner.verify(np.array([0]), random.integers(0, 256, (1, context)), np.array([context]))
    counts, times = (1, 2, 4, 8, 16), dict[str, list[float]]()
    for _ in range(25):
        for count in counts:
            ids = random.integers(0, 256, (1, count))
            for warm in (True, False):  # the first pass after one of another shape finds other numbers in the caches
                start = time.perf_counter()
                runner.verify(np.array([context]), ids, np.array([count]))
                if not warm:
                    times.setdefault(f"pass_{count}_s", []).append(time.perf_counter() - start)
            if count == 8 and n_future > 1:
                start = time.perf_counter()
                for _ in runner.drafts(np.array([context]), np.array([8]), n_future, ahead):
                    pass
                times.setdefault("draft_s", []).append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def read_rate(shape: Shape) -> dict[str, Any]:
    """Bytes a second that the device, or the threads together, read from memory at best."""
    numbers = torch.ones(1 << 26, device=pick_device().value)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        numbers.sum().item()  # waits for the device
        times.append(time.perf_counter() - start)
    return {"bytes_per_s": numbers.numel() * 4 / min(times)}
