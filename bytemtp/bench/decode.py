"""`bench decode` without a run: bytes a second of plain decoding beside transformers, and what passes cost."""

from importlib.util import find_spec
from typing import Any

from bytemtp.bench.shapes import Shape
from bytemtp.bench.turns import Contestant, machine, markdown_table, measure, take_turns
from bytemtp.common.runtime import log

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
        print(
            markdown_table(
                rows, ["plain decoding", "bytes/s", "ms a byte", "vs best transformers", "of memory's read rate"]
            )
        )
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
        print(markdown_table(rows, ["heads", "1 id", "2", "4", "8", "16", "8 vs 1", "drafts"]))
