"""One measurement in a process of its own: `python -m bytemtp.bench.worker NAME JSON` prints one JSON line.

`measure` in `turns.py` calls this; there is no reason to type it.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bytemtp.bench.data import measure_memory, measure_rates
from bytemtp.bench.generating import ours_generate, passes, read_rate, transformers_generate
from bytemtp.bench.shapes import Shape
from bytemtp.common.runtime import pick_device
from bytemtp.common.settings import Topology, TrainConfig
from bytemtp.common.vocab import PADDED_VOCAB_SIZE
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.progress import peak_memory_bytes

Result = dict[str, Any]


def main() -> None:
    name, spec = sys.argv[1], json.loads(sys.argv[2])
    shape = Shape(**spec.pop("shape"))
    print(json.dumps(WORKERS[name](shape, **spec)))


def ours(
    shape: Shape,
    *,
    dtype: str = "float32",
    compiled: bool = False,
    n_future: int = 1,
    topology: Topology = "parallel",
    mode: Any = "sequential",
    documents: int = 1,
    steps: int = 8,
) -> Result:
    """Training step of bytemtp: forward and backward of all heads, clipping, AdamW."""
    device = pick_device().value
    model = ByteMTP(shape.config(n_future, topology)).to(device)
    model.use(dtype=getattr(torch, dtype), compiled=compiled)
    optimizer = Optimizers(model, TrainConfig())
    batches = random_rows(shape, shape.seq + n_future)

    def step() -> None:
        ids = next(batches)
        document_ids = (torch.arange(ids.shape[1]) * documents // ids.shape[1]).expand_as(ids)
        layout = model.layout(shape.batch, shape.seq, document_ids)  # made on the host, so a device is not waited for
        backward(model, ids.to(device), document_ids.to(device), mode=mode, layout=layout)
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, shape, steps, model)


def transformers_llama(shape: Shape, *, dtype: str = "float32", compiled: bool = False, steps: int = 8) -> Result:
    """The same work by transformers' LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=PADDED_VOCAB_SIZE, hidden_size=shape.dim, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads, max_position_embeddings=shape.seq,
        attn_implementation="sdpa", use_cache=False,  # type: ignore[call-arg]
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return peer(model, lambda ids: model(input_ids=ids, labels=ids).loss, shape, dtype, compiled, steps)


def x_transformers(shape: Shape, *, dtype: str = "float32", compiled: bool = False, steps: int = 8) -> Result:
    """The same work by x-transformers' Decoder."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.dim, depth=shape.layers, heads=shape.heads, attn_dim_head=shape.dim // shape.heads,
        attn_kv_heads=shape.kv_heads or shape.heads, rotary_pos_emb=True, use_rmsnorm=True, ff_swish=True, ff_glu=True,
        ff_mult=shape.ffn / shape.dim, ff_no_bias=True, attn_flash=True,
    )  # fmt: skip
    net = TransformerWrapper(num_tokens=PADDED_VOCAB_SIZE, max_seq_len=shape.seq, attn_layers=layers)
    model = AutoregressiveWrapper(net)
    return peer(model, model, shape, dtype, compiled, steps)


def peer(
    model: torch.nn.Module, loss_of: Callable[[Tensor], Tensor], shape: Shape, dtype: str, compiled: bool, steps: int
) -> Result:
    device = pick_device().value
    model.to(device)
    loss_of = torch.compile(loss_of) if compiled else loss_of
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = random_rows(shape, shape.seq)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(next(batches).to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, shape, steps, model)


def matrix_peak(shape: Shape, *, dtype: str = "float32") -> Result:
    """Floating-point operations a second of one large square matrix product: what the machine can do at best."""
    device = pick_device().value
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    times = [timed_once(lambda: a @ b) for _ in range(12)]
    return {"flops": 2 * size**3 / min(times[2:])}


def random_rows(shape: Shape, length: int) -> Any:
    """Endless int64 batches cut at random from Python source, the same for every contestant."""
    data = np.frombuffer(b"".join(path.read_bytes() for path in shape.source_files()), dtype=np.uint8)
    random = np.random.default_rng(0)
    while True:
        starts = random.integers(0, len(data) - length, shape.batch)
        yield torch.from_numpy(np.stack([data[start : start + length] for start in starts]).astype(np.int64))


def timed(step: Callable[[], None], shape: Shape, steps: int, model: torch.nn.Module) -> Result:
    """Median seconds a step after three to warm up, and the peak memory that the steps added."""
    before = resident_bytes()
    for _ in range(3):
        step()
    seconds = statistics.median(timed_once(step) for _ in range(steps))
    peak = peak_memory_bytes(pick_device().value)
    return {
        "step_s": seconds,
        "bytes_per_s": shape.batch * shape.seq / seconds,
        "peak_memory_bytes": peak,
        "step_memory_bytes": peak - before,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def timed_once(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Memory in use now: of the device where there is one, of the process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


WORKERS: dict[str, Callable[..., Result]] = {
    "ours": ours,
    "transformers": transformers_llama,
    "x-transformers": x_transformers,
    "matrix-peak": matrix_peak,
    "ours-generate": ours_generate,
    "transformers-generate": transformers_generate,
    "passes": passes,
    "read-rate": read_rate,
    "data-rates": measure_rates,
    "data-memory": measure_memory,
}

if __name__ == "__main__":
    main()
