"""The peer of `bench quality`: a GPT-2 of bytes at the small settings that nanoGPT recommends for a CPU.

Written from the public description of nanoGPT; no line is copied.  Learned positions, LayerNorm without bias, an MLP of
four times the width, tied embedding; AdamW with warm-up and cosine.  Two things differ, both in its favour or neutral:

- Its schedule follows the clock, not a number of steps, so that it gets all of it in the minutes that it is given.
- Reading the files is not part of the minutes.

`python -m bytemtp.bench.nano_gpt JSON` trains and scores one, and prints a JSON line; `quality.py` calls this.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from bytemtp.common.cli import run_main
from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log, pick_device
from bytemtp.common.settings import DataConfig, TrainConfig
from bytemtp.common.vocab import EOT
from bytemtp.evaluation.bits_per_byte import batched, read_ids
from bytemtp.training.loss import IGNORED
from bytemtp.training.optimizer import learning_rate, set_learning_rate

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
RECIPE = TrainConfig(lr=1e-3, warmup=100, schedule="cosine", final_lr=0.1, weight_decay=0.1, grad_clip=1.0)
"""What `learning_rate` and the optimiser read; `minutes` is filled in."""
BETAS = (0.9, 0.99)
STRIDE = CONTEXT // 2
"""Bytes that a scored window adds to the one before it: the rest of it is context."""
BOUNDARY = ord("\n")
"""Byte between two documents, and the start that the first byte of a scored document is predicted from."""
WINDOWS_A_PASS = 256


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.from_heads = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        split = self.qkv(self.norm_attention(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.from_heads(read.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class NanoGPT(nn.Module):
    """Bytes [b, s], s at most CONTEXT, to logits of the byte after each."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.bytes = nn.Embedding(256, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = "from_heads" in name or "down" in name
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if into_residual else 0.02)

    def forward(self, octets: Int[Tensor, "b s"]) -> Float[Tensor, "b s 256"]:
        x = self.bytes(octets) + self.positions.weight[: octets.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.bytes.weight)


def read(paths: Sequence[str], data: DataConfig) -> tuple[UInt8[Tensor, " k"], list[int]]:
    """All documents with a BOUNDARY behind each, and where these stand.  UserError if a path cannot be read."""
    octets, ends, count = [], [], 0
    for chunk in read_ids(paths, data):
        is_end = chunk == EOT
        octets.append(chunk.masked_fill(is_end, BOUNDARY).to(torch.uint8))
        ends += (count + is_end.nonzero()[:, 0]).tolist()
        count += len(chunk)
    return torch.cat(octets), ends


def train(octets: UInt8[Tensor, " k"], minutes: float, seed: int) -> tuple[NanoGPT, int]:
    """A model trained for so long, and its steps.  UserError if there are too few bytes for a row."""
    if len(octets) <= CONTEXT:
        raise UserError(f"the training files have {len(octets)} bytes; the peer needs more than {CONTEXT}")
    recipe = replace(RECIPE, minutes=minutes)
    device = pick_device().value
    model = NanoGPT(seed).to(device)
    optimizer = adamw(model)
    rows = random_rows(octets, seed)
    step, start, elapsed = 0, time.monotonic(), 0.0
    while elapsed < 60 * minutes:
        set_learning_rate(optimizer, learning_rate(recipe, step, elapsed))
        train_step(model, optimizer, next(rows).to(device))
        step, elapsed = step + 1, time.monotonic() - start
    return model, step


def train_step(model: NanoGPT, optimizer: torch.optim.Optimizer, rows: Int[Tensor, "b s_1"]) -> None:
    loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), RECIPE.grad_clip)
    optimizer.step()
    optimizer.zero_grad()


def adamw(model: NanoGPT) -> torch.optim.AdamW:
    """Decay on matrices, embeddings among them, and on nothing else."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    scales = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": RECIPE.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RECIPE.lr, betas=BETAS, fused=True)


def random_rows(octets: UInt8[Tensor, " k"], seed: int) -> Iterator[Int[Tensor, "b s_1"]]:
    """Endless batches of CONTEXT + 1 bytes from random places."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(octets) - CONTEXT, (BATCH, 1), generator=generator)
        yield octets[starts + torch.arange(CONTEXT + 1)].long()


@torch.no_grad()
def score(model: NanoGPT, octets: UInt8[Tensor, " k"], ends: list[int]) -> tuple[float, int]:
    """Nats of all bytes of all documents, and how many bytes that are.

    octets, ends: from `read`.  A byte's context is its document behind a BOUNDARY, at least STRIDE bytes of it, as far
    as it goes back.
    """
    device = model.positions.weight.device
    text = F.pad(octets, (1, 0), value=BOUNDARY)
    nats, count = 0.0, 0
    for places in batched(windows(ends), WINDOWS_A_PASS):
        inputs, targets = cut(text, torch.tensor(places))
        logits = model(inputs.to(device)).flatten(0, 1).double()
        nats += F.cross_entropy(logits, targets.to(device).flatten(), ignore_index=IGNORED, reduction="sum").item()
        count += int((targets != IGNORED).sum())
    return nats, count


def windows(ends: list[int]) -> Iterator[tuple[int, int, int]]:
    """Of each window: where its document's BOUNDARY stands in the text, how many bytes the document has, and how many
    of them lie before the window."""
    begin = 0
    for end in ends:
        length = end - begin
        for skipped in range(0, max(1, length - STRIDE), STRIDE):
            yield begin, length, skipped
        begin = end + 1


def cut(text: UInt8[Tensor, " k"], places: Int[Tensor, "b 3"]) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Inputs and targets of windows; IGNORED are targets beyond the document, or scored by the window before."""
    begin, length, skipped = places[:, :, None].unbind(1)
    column = torch.arange(CONTEXT)
    at = (begin + skipped + column).clamp(max=len(text) - 2)
    is_new = (skipped + column < length) & ((skipped == 0) | (column >= STRIDE))
    return text[at].long(), text[at + 1].long().masked_fill(~is_new, IGNORED)


def measure(
    training: Sequence[str], heldout: Sequence[str], minutes: float, seed: int, data: dict[str, Any]
) -> dict[str, Any]:
    """Train on some files, score others.  data: fields of DataConfig, how both are opened."""
    tuples = {name: tuple(x) for name, x in data.items() if isinstance(x, list)}  # JSON has none
    opened = DataConfig(**data | tuples)
    octets, _ = read(training, opened)
    log(f"peer: {len(octets):,} bytes to train on, device {pick_device()}")
    model, steps = train(octets, minutes, seed)
    held_out, ends = read(heldout, opened)
    nats, count = score(model, held_out, ends)
    return {
        "steps": steps,
        "bytes_seen": steps * BATCH * CONTEXT,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": count,
        "documents": len(ends),
        "bpb": nats / math.log(2) / count,
    }


def main() -> None:
    print(json.dumps(measure(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    run_main(main)
