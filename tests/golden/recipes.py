"""What the golden files hold, computed anew: training, batches, decoding and verdicts, each small and seeded.

    python tests/golden/recipes.py        writes the files beside this one, with the machine that they were made on

Tests (test_golden.py) compare.  Batches and verdicts are the same on every machine; weights and decoded bytes only on
one like that which recorded them, since sums of floats depend on the processor; losses everywhere within a tolerance.
"""

import gzip
import hashlib
import io
import json
import lzma
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
import zstandard

import bytemtp
from bytemtp.common.settings import ModelConfig, Topology, TrainConfig
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers, learning_rate, set_learning_rate

HERE = Path(__file__).parent
TEXT = HERE.parent.parent / "corpora" / "tiny.txt"
STEPS, SEQ_LEN, HEADS = 20, 48, 4
PROMPT = b"The "
NEW_BYTES = 300


def machine() -> dict[str, str]:
    """What floating-point results depend on.  A name has several generations, which round differently."""
    numbers = ("cpu family", "model", "stepping")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
    generation = " ".join(fields.get(name, "") for name in numbers)
    name = torch.cpu.get_capabilities()["cpu_name"]
    return {"processor": f"{name} {generation}".strip(), "torch": torch.__version__}


def digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def dtypes() -> list[str]:
    has_bfloat16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return ["float32", "bfloat16"] if has_bfloat16 else ["float32"]


def trained(topology: Topology, dtype: str) -> tuple[ByteMTP, list[float]]:
    """A model of 0.1M parameters after 20 steps on the tiny text, and the loss of each step."""
    model = ByteMTP(ModelConfig(32, 6, 2, 1, 48, n_future=HEADS, topology=topology))
    model.use(dtype=getattr(torch, dtype))
    train = TrainConfig(steps=STEPS, lr=4e-3, warmup=2)
    optimizer, losses = Optimizers(model, train), []
    batches = bytemtp.stream(TEXT, SEQ_LEN, 4, n_future=HEADS, epochs=None, prefetch=0)
    for step in range(STEPS):
        batch = next(batches)
        losses.append(backward(model, batch.ids, batch.document_ids).mean)
        optimizer.clip(1.0)
        set_learning_rate(optimizer, learning_rate(train, step, 0.0))
        optimizer.step()
        optimizer.zero_grad()
    batches.close()
    return model.eval(), losses


def training(topology: Topology) -> dict[str, Any]:
    """Losses and the hash of the weights, by dtype."""
    found = {}
    for dtype in dtypes():
        model, losses = trained(topology, dtype)
        found[dtype] = {
            "losses": losses,
            "weights": digest(*(p.detach().numpy().tobytes() for p in model.parameters())),
        }
    return found


def decoding(topology: Topology) -> dict[str, str]:
    """Hash of the bytes that each mode, temperature and engine writes."""
    model, found = trained(topology, "float32")[0], {}
    model.trained_length = SEQ_LEN
    small = trained("linear", "float32")[0]
    modes: dict[str, dict[str, Any]] = {"ar": {}, "speculative": {}, "tree": {}, "draft": {"draft": small}}
    for mode, more in modes.items():
        for temperature in (0.0, 0.9):
            for engine in ("native", "torch"):
                out = bytemtp.generate(
                    model, PROMPT, NEW_BYTES, mode=mode, temperature=temperature, seed=7, engine=engine, **more
                )
                found[f"{mode} {temperature} {engine}"] = digest(out.data, bytes(out.origins))
    return found


def mixed_corpus(folder: Path) -> Path:
    """Files of every kind that the data layer opens, with empty, short and long documents."""
    text = TEXT.read_bytes()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for number, size in enumerate((0, 1, 700, 300_000)):
            member = tarfile.TarInfo(f"member-{number}")
            data = (text * 10)[number : number + size]
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    lines = "".join(json.dumps({"text": line}) + "\n" for line in text.decode().splitlines() if line)
    files = {
        "plain.txt": text,
        "deep/er/every.bin": bytes(range(256)) * 5,
        "archive.tar.zst": zstandard.compress(tar.getvalue()),
        "lines.jsonl.gz": gzip.compress(lines.encode(), mtime=0),
        "one.xz": lzma.compress(text[::-1]),
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


BATCHES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "in order": {"shuffle": False},
    "train": {"split": "train", "valid_fraction": 0.3},
    "valid": {"split": "valid", "valid_fraction": 0.3},
    "second of three ranks": {"rank": 1, "world_size": 3},
    "two epochs, another seed": {"epochs": 2, "seed": 5},
}


def batches() -> dict[str, str]:
    """Hash of all ids, document ids and cursors of a mixed corpus, by options of the stream."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = mixed_corpus(Path(folder))
        return {name: _batches(corpus, options) for name, options in BATCHES.items()}


def _batches(corpus: Path, options: dict[str, Any]) -> str:
    parts = []
    with bytemtp.stream(corpus, 64, 4, **options) as stream:
        for batch in stream:
            parts += [batch.ids.numpy().tobytes(), batch.document_ids.numpy().tobytes()]
            parts.append(json.dumps(asdict(batch.cursor)).encode())
    return digest(*parts)


def main() -> None:
    torch.set_num_threads(1)
    topologies = get_args(Topology)
    files = {
        "training": {"machine": machine(), "topologies": {name: training(name) for name in topologies}},
        "decoding": {"machine": machine(), "topologies": {name: decoding(name) for name in topologies}},
        "batches": batches(),
    }
    for name, content in files.items():
        (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
