"""`bench train`: bytes a second of a training step, ours beside the peers', and the price of eight heads.

Every contestant does the same work on the same bytes: forward, backward, AdamW.  Ours also clips the gradient.
"""

from importlib.util import find_spec
from typing import Any

from bytemtp.bench.shapes import Shape
from bytemtp.bench.turns import Contestant, machine, markdown_table, measure, take_turns
from bytemtp.common.runtime import log, pick_device, pick_dtype

PEERS = {"transformers": "transformers", "x-transformers": "x_transformers"}


def bench_train(shape: Shape, rounds: int, steps: int) -> dict[str, Any]:
    """Ours with one head in each arithmetic, eager and compiled, and the installed peers likewise.  On CUDA in the one
    that training takes: nobody trains there in float32."""
    device = pick_device().value
    chosen = str(pick_dtype("auto", device).value).removeprefix("torch.")
    dtypes = [chosen] if device.type == "cuda" else list(dict.fromkeys(["float32", chosen]))
    contestants: dict[str, Contestant] = {}
    for dtype in dtypes:
        for worker in ("ours", *installed_peers()):
            for compiled in (False, True):
                label = f"{worker} {dtype} {'compiled' if compiled else 'eager'}"
                contestants[label] = worker, shape, dict(dtype=dtype, compiled=compiled, steps=steps)
    peaks = {dtype: measure("matrix-peak", shape, {"dtype": dtype})["flops"] for dtype in dtypes}
    results = take_turns(contestants, rounds)
    for label, result in results.items():
        peak = peaks[label.split()[1]]
        result["share_of_peak"] = (shape.matrix_flops() + shape.attention_flops()) / result["step_s"] / peak
    return {"bench": "train", "machine": machine(), "peak_flops": peaks, "results": results}


def print_train(report: dict[str, Any]) -> None:
    results = report["results"]
    first = next(iter(report["peak_flops"]))
    peer = [result for label, result in results.items() if label.startswith(f"transformers {first}")]
    best_peer = max((result["bytes_per_s"] for result in peer), default=0.0)
    rows = [
        [
            label,
            f"{result['bytes_per_s']:,.0f}",
            f"{result['step_s']:.3f} ({result['step_s_min']:.3f}-{result['step_s_max']:.3f})",
            f"{result['bytes_per_s'] / best_peer:.2f}x" if best_peer else "",
            f"{result['share_of_peak']:.0%}",
            f"{result['peak_memory_bytes'] / 2**20:,.0f}",
        ]
        for label, result in results.items()
    ]
    header = ["contestant", "bytes/s", "s/step (min-max)", f"vs transformers {first}", "of peak", "peak MiB"]
    print(markdown_table(rows, header))


def bench_heads(shape: Shape, rounds: int, steps: int, counts: list[int], topologies: list[str]) -> dict[str, Any]:
    """Ours at parity: n heads against one, by topology, in the arithmetic and mode that training would choose."""
    dtype = str(pick_dtype("auto", pick_device().value).value).removeprefix("torch.")
    common = dict(dtype=dtype, compiled=True, steps=steps)
    contestants: dict[str, Contestant] = {"n=1": ("ours", shape, {**common, "n_future": 1})}
    for topology in topologies:
        for n in counts:
            contestants[f"n={n} {topology}"] = "ours", shape, {**common, "n_future": n, "topology": topology}
    results = take_turns(contestants, rounds)
    return {"bench": "heads", "machine": machine(), "dtype": dtype, "results": results}


def print_heads(report: dict[str, Any]) -> None:
    results = report["results"]
    one = results["n=1"]
    rows = [
        [
            label,
            f"{result['step_s']:.3f}",
            f"{result['step_s'] / one['step_s']:.3f}x",
            f"{result['peak_memory_bytes'] / 2**20:,.0f}",
            f"{result['peak_memory_bytes'] / one['peak_memory_bytes']:.2f}x",
            f"{result['parameters'] / 1e6:.2f}",
        ]
        for label, result in results.items()
    ]
    print(markdown_table(rows, ["heads", "s/step", "time vs n=1", "peak MiB", "memory vs n=1", "parameters, M"]))


def installed_peers() -> list[str]:
    """Peers that can be imported; the others are named, with what to install."""
    installed = [name for name, module in PEERS.items() if find_spec(module)]
    if missing := sorted(set(PEERS) - set(installed)):
        log(f"not measured: {', '.join(missing)} (pip install 'bytemtp[bench]')")
    return installed
