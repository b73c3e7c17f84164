"""Training and decoding on a CUDA device, all ways beside each other: they must agree, and print what they cost.

    python -m pytest -m gpu tests/gpu -s

Tables: for each attention kernel, eager and compiled, the loss after some steps, bytes a second, memory held (and
foreseen) and MFU; for each engine and mode of decoding, bytes a pass and bytes a second.
"""

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

import bytemtp
from bytemtp.bench.turns import markdown_table
from bytemtp.common.presets import preset
from bytemtp.common.settings import Settings, changed
from bytemtp.model import attention
from bytemtp.training.cost import memory
from bytemtp.training.trainer import train

pytestmark = [pytest.mark.gpu, pytest.mark.compiled]

SETTINGS = changed(
    preset("100m"),
    **{"train.steps": 24, "train.batch_size": 32, "train.accumulate": 2, "train.warmup": 8, "train.log_every": 12},
    **{"train.sample_bytes": 0, "train.valid_every": 0, "data.valid_fraction": 0.0, "train.compile": "false"},
)
"""A model that fills a card's processors, on rows long enough for attention to count."""
WAYS = [(kernel, compiled) for kernel in ("xformers", "varlen", "sdpa") for compiled in ("false", "true")]
WRITERS = [("torch", "ar"), *(("recorded", mode) for mode in ("ar", "speculative", "copy", "auto"))]
PROMPT = b"def __init__(self, "


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The top level of this Python's library in one folder."""
    folder = tmp_path_factory.mktemp("library")
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def measured(settings: Settings, library: str, run: Path) -> dict[str, Any]:
    """Train; the last line of its metrics, which leaves out the steps that compile."""
    torch.cuda.reset_peak_memory_stats()
    train(settings, [library], run, device="cuda")
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_all_kernels_train_alike(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, rows = {}, []
    for kernel, compiled in WAYS:
        monkeypatch.setattr(attention, "CUDA_BACKENDS", () if kernel == "sdpa" else (kernel,))
        settings = changed(SETTINGS, **{"train.compile": compiled})
        if attention.first_that_runs(torch.device("cuda", 0), settings.model, torch.bfloat16).value != kernel:
            continue
        line = measured(settings, library, tmp_path / f"{kernel}-{compiled}")
        losses[kernel, compiled] = line["loss"]
        held, foreseen = line["peak_memory_bytes"] / 1e9, memory(settings, torch.bfloat16).total / 1e9
        figures = f"{line['loss']:.4f}", f"{line['bytes_per_s'] / 1e3:,.0f}", f"{held:.2f}", f"{foreseen:.2f}"
        rows.append([kernel, "compiled" if compiled == "true" else "eager", *figures, f"{line.get('mfu', 0):.1%}"])
    print("\n" + markdown_table(rows, ["attention", "layers", "loss", "kB/s", "GB held", "foreseen", "MFU"]))
    assert ("sdpa", "false") in losses
    for way, loss in losses.items():
        assert loss == pytest.approx(losses["sdpa", "false"], rel=0.01), way


def test_all_engines_write_the_same_bytes(library: str, tmp_path: Path) -> None:
    """Float32; bfloat16 promises nothing, but its times are those that users see."""
    small = changed(SETTINGS, **{"train.steps": 60, "train.log_every": 60})
    run = tmp_path / "run"
    train(small, [library], run, device="cuda")
    rows, texts = [], set()
    for dtype in (torch.float32, torch.bfloat16):
        model = bytemtp.load(run, device="cuda")
        model.use(dtype=dtype)
        for engine, mode in WRITERS:
            for _ in range(2):  # the first one records, and measures what passes cost
                out = bytemtp.generate(model, PROMPT, 256, mode=mode, engine=engine)
            if dtype == torch.float32:
                texts.add(out.data)
            figures = f"{out.stats['bytes_per_forward']:.2f}", f"{out.stats['bytes_per_s']:,.0f}"
            rows.append([str(dtype).removeprefix("torch."), engine, mode, *figures, out.stats["exact"]])
    print("\n" + markdown_table(rows, ["arithmetic", "engine", "mode", "bytes a pass", "bytes/s", "near ties"]))
    assert len(texts) == 1


def test_a_row_of_256_kib_fits(library: str, tmp_path: Path) -> None:
    """Memory grows with the length of a row and not with its square."""
    rows = []
    for length in (16, 64, 256):
        one_row = {"train.seq_len": length << 10, "train.batch_size": 1, "train.accumulate": 1}
        settings = changed(SETTINGS, **one_row, **{"train.steps": 6, "train.log_every": 3})
        line = measured(settings, library, tmp_path / str(length))
        held, foreseen = line["peak_memory_bytes"] / 1e9, memory(settings, torch.bfloat16).total / 1e9
        rows.append([f"{length} KiB", f"{line['bytes_per_s'] / 1e3:,.0f}", f"{held:.2f}", f"{foreseen:.2f}"])
    print("\n" + markdown_table(rows, ["row", "kB/s", "GB held", "foreseen"]))
    assert float(rows[-1][2]) < 18 * float(rows[0][2])
