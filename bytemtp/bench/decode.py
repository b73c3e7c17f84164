"""`bench decode`: bytes a second of plain decoding beside transformers, and what drafting adds on a trained run."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bytemtp.bench.generating import continued, llama_of
from bytemtp.bench.shapes import Shape
from bytemtp.bench.turns import Contestant, machine, measure, table, take_turns
from bytemtp.bpb import read_ids
from bytemtp.checkpoint import load_model
from bytemtp.config import DataConfig
from bytemtp.decode import Generation, generate_batch
from bytemtp.errors import UserError
from bytemtp.model import ByteMTP
from bytemtp.runtime import log, pick_device
from bytemtp.vocab import EOT

PEER_TEXTS = 8
"""Texts that transformers continues: it takes its time."""
SHAPES = {"6.6M": Shape(), "38.8M": Shape(dim=512, layers=12, heads=8, ffn=1408)}


def bench_decode(rounds: int, new: int) -> dict[str, Any]:
    """Greedy decoding of one text at two shapes, ours beside transformers on the same weights; then passes over 1 to 16
    ids, with no drafts, linear and replicated heads."""
    rate = measure("read-rate", Shape(), {})["bytes_per_s"]
    report: dict[str, Any] = {"bench": "decode", "machine": machine(), "read_bytes_per_s": rate, "shapes": {}}
    for name, shape in SHAPES.items():
        contestants: dict[str, Contestant] = {
            "ours": ("ours-generate", shape, {"new": new}),
            "ours, tensor operations": ("ours-generate", shape, {"engine": "torch", "new": new}),
            "ours, recorded": ("ours-generate", shape, {"engine": "recorded", "new": new}),
        }
        if find_spec("transformers"):
            contestants["transformers"] = "transformers-generate", shape, {"new": new}
            contestants["transformers, static cache"] = "transformers-generate", shape, {"static": True, "new": new}
        else:
            log("not measured: transformers (pip install 'bytemtp[bench]')")
        heads: dict[str, Contestant] = {
            f"{topology}, n={n}": ("passes", shape, {"topology": topology, "n_future": n})
            for topology, n in (("linear", 1), ("linear", 8), ("replicated", 8))
        }
        report["shapes"][name] = {"generate": take_turns(contestants, rounds), "passes": take_turns(heads, rounds)}
    return report


def print_decode(report: dict[str, Any]) -> None:
    rate = report["read_bytes_per_s"]
    for name, shape in report["shapes"].items():
        peers = [r["bytes_per_s"] for label, r in shape["generate"].items() if label.startswith("transformers")]
        digests = {result["digest"] for result in shape["generate"].values()}
        rows = [
            [
                label,
                f"{result['bytes_per_s']:,.0f}",
                f"{1e3 * result['step_s']:.2f}",
                f"{result['bytes_per_s'] / max(peers):.2f}x" if peers else "",
                f"{result['parameters'] * 4 * result['bytes_per_s'] / rate:.0%}",
            ]
            for label, result in shape["generate"].items()
        ]
        print(
            f"\n{name} parameters; the contestants wrote {'the same bytes' if len(digests) == 1 else 'DIFFERENT bytes'}"
        )
        print(table(rows, ["plain decoding", "bytes/s", "ms a byte", "vs best transformers", "of memory's read rate"]))
        rows = [
            [
                label,
                *(f"{1e3 * result[f'pass_{count}_s']:.2f}" for count in (1, 2, 4, 8, 16)),
                f"{result['pass_8_s'] / result['pass_1_s']:.2f}x",
                f"{1e3 * result['draft_s']:.2f}" if "draft_s" in result else "",
            ]
            for label, result in shape["passes"].items()
        ]
        print(f"\n{name} parameters, ms of a pass behind 256 ids")
        print(table(rows, ["heads", "1 id", "2", "4", "8", "16", "8 vs 1", "drafts"]))


def bench_run(
    run: Path,
    texts: Sequence[bytes],
    new: int,
    batches: Sequence[int],
    temperatures: Sequence[float],
    heads: Sequence[int],
) -> dict[str, Any]:
    """A trained run continues texts: plainly, and by its first k heads for these (or all) k; one text at a time, and in
    batches by all heads; and transformers' `generate` beside it, if it is installed."""
    model = load_model(run, pick_device().value)
    generate_batch(model, texts[:1], 16)  # compiles, packs
    rows, n = [], model.config.n_future
    counts = [k for k in range(2, n + 1) if not heads or k in heads]
    for temperature in temperatures:
        for batch in batches:
            plain = _measure(model, texts, new, batch, mode="ar", temperature=temperature)
            rows.append(_row(temperature, batch, 1, plain, plain))
            for k in counts if batch == batches[0] else [n]:
                fast = _measure(model, texts, new, batch, mode="speculative", heads=k, temperature=temperature)
                rows.append(_row(temperature, batch, k, plain, fast))
                log(f"temperature {temperature} batch {batch} heads {k}: {rows[-1]['speed_up']:.2f}x")
    peer = _transformers(model, texts[:PEER_TEXTS], new) if find_spec("transformers") else None
    sizes = {"texts": len(texts), "new": new}
    return {"bench": "decode", "machine": machine(), "run": str(run), **sizes, "rows": rows, "transformers": peer}


def _transformers(model: ByteMTP, texts: Sequence[bytes], new: int) -> dict[str, float]:
    """Greedy bytes a second of transformers' `generate` and of ours by all heads, and how many texts are the same."""
    llama = llama_of(model)
    continued(llama, texts[0], 8)
    start = time.perf_counter()
    theirs = [continued(llama, text, new) for text in texts]
    seconds = time.perf_counter() - start
    ours = _measure(model, texts, new, 1, mode="speculative")
    return {
        "bytes_per_s": sum(map(len, theirs)) / seconds,
        "ours_bytes_per_s": sum(len(out.data) for out in ours) / sum(out.stats["seconds"] for out in ours),
        "identical": sum(a == b.data for a, b in zip(theirs, ours, strict=True)) / len(texts),
    }


def beginnings(paths: Sequence[str], count: int, size: int, text_field: str) -> list[bytes]:
    """The first `size` bytes of the first `count` documents.  UserError if there is no document."""
    found: list[bytes] = []
    document = bytearray()
    for chunk in read_ids(paths, DataConfig(text_field=text_field)):
        for id_ in chunk.tolist():
            if id_ != EOT:
                document.append(id_)
                continue
            found.append(bytes(document[:size]))
            document.clear()
            if len(found) == count:
                return found
    if not found:
        raise UserError(f"{', '.join(paths)}: no document to continue")
    return found


def _measure(model: ByteMTP, texts: Sequence[bytes], new: int, batch: int, **options: Any) -> list[Generation]:
    out: list[Generation] = []
    for first in range(0, len(texts), batch):
        out += generate_batch(model, texts[first : first + batch], new, **options)
    return out


def _row(temperature: float, batch: int, k: int, plain: list[Generation], fast: list[Generation]) -> dict[str, Any]:
    """Seconds are those of whole batches, so a batch counts its rows together.  What the first pass of a text takes and
    gives, which has read its prompt, is left out of `behind_prompt`; zeros where nothing else came."""

    def seconds(outs: list[Generation], name: str) -> float:
        return sum(outs[first].stats[name] for first in range(0, len(outs), batch))

    def rate(outs: list[Generation]) -> float:
        return sum(len(out.data) for out in outs) / seconds(outs, "seconds")

    def later_bytes(outs: list[Generation]) -> int:
        return sum(len(out.data[1:]) for out in outs)

    def later_rate(outs: list[Generation]) -> float:
        return later_bytes(outs) / (seconds(outs, "seconds") - seconds(outs, "prompt_seconds"))

    later_forwards = sum(out.stats["forwards"] - 1 for out in fast)
    return {
        "temperature": temperature,
        "batch": batch,
        "k": k,
        "bytes_per_s": rate(fast),
        "speed_up": rate(fast) / rate(plain),
        "behind_prompt": {
            "bytes_per_s": later_rate(fast),
            "bytes_per_forward": later_bytes(fast) / max(later_forwards, 1),
            "speed_up": later_rate(fast) / (later_rate(plain) or 1.0),
        },
        "identical": sum(a.data == b.data for a, b in zip(plain, fast, strict=True)) / len(fast),
        "exact": sum(out.stats["exact"] for out in fast),
    }


def print_run(report: dict[str, Any]) -> None:
    rows = [
        [
            row["temperature"],
            row["batch"],
            row["k"],
            f"{row['bytes_per_s']:,.0f}",
            f"{row['speed_up']:.2f}x",
            f"{later['bytes_per_s']:,.0f}",
            f"{later['bytes_per_forward']:.2f}",
            f"{later['speed_up']:.2f}x",
            f"{later['speed_up'] / (later['bytes_per_forward'] or 1.0):.2f}",
            f"{row['identical']:.0%}" if row["temperature"] == 0 else "same law",
        ]
        for row in report["rows"]
        for later in [row["behind_prompt"]]
    ]
    print(f"{report['run']}: {report['texts']} texts, up to {report['new']} new bytes each")
    header = ["temperature", "batch", "heads", "bytes/s", "speed-up"]
    later = ["behind the prompt: bytes/s", "bytes a pass", "speed-up", "speed-up / bytes a pass"]
    print(table(rows, [*header, *later, "same as plain"]))
    if peer := report["transformers"]:
        theirs, ours = peer["bytes_per_s"], peer["ours_bytes_per_s"]
        print(
            f"transformers' generate, greedy, a text at a time: {theirs:,.0f} bytes/s; ours by all heads {ours:,.0f}, "
            f"{ours / theirs:.1f}x; {peer['identical']:.0%} of the texts are the same"
        )
