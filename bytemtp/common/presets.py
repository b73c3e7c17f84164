"""Named settings to start from: shapes for two CPU cores, and those of the paper's models."""

from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig, Settings, TrainConfig, changed

DEFAULT_PRESET = "tiny"
AUTO = "auto"
"""In place of a preset's name: whichever is best in `train.minutes` on this machine."""
MINUTES = {"nano": 1, "tiny": 5, "mini": 20, "midi": 60, "small": 600}
"""Time on two cores (AVX512-BF16) that a preset is meant for."""


def _paper(
    dim: int, layers: int, heads: int, ffn_dim: int, rows: int, *, activation_checkpointing: bool = False
) -> Settings:
    """A shape of Gloeckle et al. 2024, table S14, trained as its byte run (table S13), which had replicated heads.

    rows: of a micro-batch.  As many as a card of 80 GB holds; those too large for one have the least.
    """
    return Settings(
        ModelConfig(dim=dim, layers=layers, attention_heads=heads, ffn_dim=ffn_dim),
        TrainConfig(
            steps=25_000,
            batch_size=1536,
            accumulate=1536 // rows,
            activation_checkpointing=activation_checkpointing,
            seq_len=8192,
            lr=3e-4,
            warmup=2000,
            schedule="cosine",
            head_weights="equal",
        ),
    )


def _minutes(dim: int, layers: int, heads: int, ffn_dim: int, steps: int, batch_size: int) -> Settings:
    """The recipe that won on two cores (experiments/recipe): rows of 64 bytes that grow to 512, and Muon.

    Heads 2 to n learn in the second half: they cost half as much, and end a few percent worse; tables of transitions
    let their drafts follow from each other.  A quarter of the rows repeat for part of the run, from which the model
    learns to copy.
    """
    return Settings(
        ModelConfig(dim=dim, layers=layers, attention_heads=heads, ffn_dim=ffn_dim, transitions=True),
        TrainConfig(
            steps=steps,
            batch_size=batch_size,
            seq_len=512,
            first_seq_len=64,
            lr=3e-3,
            embedding_lr=10.0,
            unembedding_lr=3.0,
            warmup=100,
            optimizer="muon",
            far_rows=0.25,
            far_from=0.5,
            head_schedule="late",
            repeat_rows=0.25,
            valid_every=2000,
            checkpoint_every=2000,
        ),
    )


PRESETS: dict[str, Settings] = {
    "nano": changed(
        _minutes(128, 3, 2, 352, steps=700, batch_size=3),
        **{"train.warmup": 50, "train.valid_every": 500, "train.valid_bytes": 1 << 15, "train.checkpoint_every": 500},
        # A minute is too short to learn copying, and half of it for heads that begin there.
        **{"train.grow_at": 0.7, "train.repeat_rows": 0.0},
        **{"train.far_from": 0.0, "train.head_schedule": "constant", "train.unembedding_lr": 1.0},
        **{"model.transitions": False},
    ),
    "tiny": _minutes(128, 4, 2, 352, steps=4000, batch_size=3),
    "mini": _minutes(192, 6, 3, 512, steps=7_500, batch_size=4),
    "midi": _minutes(256, 8, 4, 704, steps=9_000, batch_size=8),
    "small": Settings(
        ModelConfig(dim=512, layers=12, attention_heads=8, ffn_dim=1408),
        TrainConfig(steps=20_000, batch_size=16, seq_len=1024, lr=1e-3, warmup=500),
    ),
    "100m": Settings(
        ModelConfig(dim=768, layers=14, attention_heads=12, ffn_dim=2048),
        TrainConfig(steps=12_000, batch_size=256, accumulate=16, seq_len=2048, lr=6e-4, warmup=500, optimizer="muon"),
    ),
    "300m": _paper(1024, 18, 16, 2816, rows=8),
    "600m": _paper(1280, 27, 20, 3584, rows=4),
    "1.3b": _paper(2048, 24, 16, 5632, rows=2),
    "3b": _paper(2560, 36, 20, 6912, rows=2, activation_checkpointing=True),
    "7b": _paper(4096, 32, 32, 11008, rows=1, activation_checkpointing=True),
    "13b": _paper(5120, 40, 40, 13824, rows=1, activation_checkpointing=True),
}


def preset(name: str) -> Settings:
    """UserError for a name that is no preset."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]
