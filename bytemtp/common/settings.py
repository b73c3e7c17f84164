"""Settings: four frozen dataclasses, and TOML files of them; an unknown name or a value of the wrong type is refused.

Order of strength: preset < `--config FILE.toml` < command line.  What the first two say is the default of the third.

Try:  python -m bytemtp.train --help
"""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

from bytemtp.common.checks import check_known
from bytemtp.common.errors import UserError
from bytemtp.common.vocab import PADDED_VOCAB_SIZE

Topology = Literal["parallel", "causal", "anticausal", "linear", "replicated", "branched", "deepseek"]
LAYERED: frozenset[str] = frozenset({"parallel", "causal", "anticausal", "branched", "deepseek"})
"""Topologies whose heads are transformer layers and therefore count against `model.layers`."""

DataFormat = Literal["auto", "raw", "jsonl", "tar", "zip", "earlier"]

LONGEST_WARMUP = 0.1
"""Share of a run."""
MAX_FUTURE = 32
MAX_SWEEPS = 16
MAX_WEIGHT = 1000.0
"""How often an epoch may read a file."""
MAX_SIZE = 2**20
"""Of any whole number that shapes the model."""
MAX_COUNT = 2**31 - 1
"""Of any other whole number but the seed."""
MAX_SEED = 2**64 - 1
"""PyTorch's."""
MAX_REAL = 1e16
"""Of any number with a fraction: beyond it lies nothing but inf and mistakes."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model."""

    dim: int = 256
    """width d of the trunk"""
    layers: int = 12
    """transformer layers; with `parity` those of the heads included"""
    attention_heads: int = 4
    """query heads; dim must be a multiple, with an even head width"""
    kv_heads: int = 0
    """key/value heads (grouped-query attention); 0 means as many as attention_heads"""
    ffn_dim: int = 704
    """inner width of the SwiGLU feed-forward layer"""
    n_future: int = 8
    """heads: bytes predicted at each position, 1 to 32; 1 is the next-byte baseline"""
    topology: Topology = "replicated"
    """how the heads are attached to the trunk (docs/training.md, "Head topologies")"""
    parity: bool = True
    """take the heads' layers out of the trunk, so that n does not change the number of layers; false takes out head 1's
    alone and adds the others'"""
    transitions: bool = False
    """give heads 2 to n a table of logits each, by the byte just before the one that they predict; deepseek heads read
    that byte anyway and get none"""
    rope_theta: float = 10000.0
    """base of the rotary position embedding"""
    window: int = 0
    """attend to the last `window` positions only; 0 means all"""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys before the rotation (Henry et al. 2020), as in Qwen3"""
    order_head: bool = False
    """also train the trunk on the order in which the ids ahead come (token-order prediction, Zuhri et al. 2025), by a
    matrix that decoding does not use"""

    def __post_init__(self) -> None:
        _check_numbers("model", self, MAX_SIZE)
        for name in ("dim", "layers", "ffn_dim"):
            _require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; it must be at least 1")
        _require(
            self.attention_heads >= 1 and self.dim % (2 * self.attention_heads) == 0,
            f"model.attention_heads is {self.attention_heads}; model.dim ({self.dim}) must be a multiple of twice that",
        )
        _require(
            self.kv_heads >= 0 and self.attention_heads % self.key_value_heads == 0,
            f"model.kv_heads is {self.kv_heads}; it must divide model.attention_heads ({self.attention_heads})",
        )
        _require(
            1 <= self.n_future <= MAX_FUTURE, f"model.n_future is {self.n_future}; it must be from 1 to {MAX_FUTURE}"
        )
        _require(self.window >= 0, f"model.window is {self.window}; it must be 0 (no window) or more")
        _require(self.rope_theta >= 1, f"model.rope_theta is {self.rope_theta}; it must be at least 1")
        _require(
            self.trunk_layers >= 0,
            f"model.layers is {self.layers} but {self.n_future} {self.topology} heads have {self.head_layers} layers; "
            f"raise model.layers to at least {self.head_layers}, lower model.n_future, or set model.parity to false",
        )

    @property
    def tables(self) -> int:
        """Heads with a table of transitions."""
        return self.n_future - 1 if self.transitions and self.topology != "deepseek" else 0

    @property
    def has_far_heads(self) -> bool:
        """Whether there are heads that head 1's logits do not come from: anticausal ones are all on the way to it."""
        return self.n_future > 1 and self.topology != "anticausal"

    @property
    def least_parameters(self) -> int:
        """Parameters of the layers, embedding and one unembedding; some topologies have more."""
        attention = 2 * self.dim * (self.attention_heads + self.key_value_heads) * self.head_dim
        return self.layers * (attention + 3 * self.dim * self.ffn_dim) + 2 * PADDED_VOCAB_SIZE * self.dim

    @property
    def head_dim(self) -> int:
        return self.dim // self.attention_heads

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.attention_heads

    @property
    def head_layers(self) -> int:
        """Transformer layers of the heads: one each, or one of head 1 and one that all others share."""
        if self.topology not in LAYERED:
            return 0
        return min(self.n_future, 2) if self.topology == "branched" else self.n_future

    @property
    def trunk_layers(self) -> int:
        """Transformer layers of the shared trunk (Gloeckle et al. 2024, section 2: n - 1 layers leave the trunk)."""
        return self.layers - (self.head_layers if self.parity else min(self.head_layers, 1))


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation and the run."""

    steps: int = 1000
    """optimiser steps; also the length of the schedule"""
    minutes: float = 0.0
    """stop after this many minutes instead of `steps`; the schedule then follows the clock.  0 means by steps"""
    batch_size: int = 16
    """sequences an optimiser step, over all accumulation rounds"""
    accumulate: int = 1
    """gradient accumulation: split the batch into this many micro-batches, to save memory"""
    seq_len: int = 512
    """input bytes a sequence"""
    first_seq_len: int = 0
    """shorter sequences, and so many more of them, for the first part of the run; 0, or seq_len and more, means none"""
    grow_at: float = 0.5
    """share of the run after which sequences have seq_len bytes"""
    lr: float = 1e-3
    """peak learning rate"""
    embedding_lr: float = 1.0
    """learning rate of the byte embedding, as a multiple of `lr`; 10 or more works best with Muon"""
    unembedding_lr: float = 1.0
    """the same for the unembeddings, transitions and the order head"""
    far_rows: float = 1.0
    """share of a batch's rows that heads 2 to n learn from: fewer make a step cheaper"""
    far_from: float = 0.0
    """share of the run after which heads 2 to n begin to learn: before it they cost nothing"""
    tv_from: float = 1.0
    """share of the run after which they learn to be accepted as drafts (total variation to what head 1 will say) in
    place of cross-entropy; 1 means never"""
    repeat_rows: float = 0.0
    """share of a batch's rows replaced by repeated random bytes, which teach the model to copy; 0 means none"""
    repeat_until: float = 0.6
    """share of the run after which no rows repeat"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of the transformer layers with adamw for the rest"""
    schedule: Literal["cosine", "wsd"] = "wsd"
    """after the warm-up: half a cosine down to final_lr, or constant and then linear to zero"""
    decay: float = 0.5
    """share of the run, at its end, over which wsd falls to zero"""
    warmup: int = 50
    """steps of linear warm-up; it takes a tenth of the run at most"""
    final_lr: float = 0.03
    """the cosine ends at this fraction of lr (Gloeckle et al. 2024, table S13)"""
    weight_decay: float = 0.1
    """decoupled weight decay of the matrices; norms have none"""
    grad_clip: float = 1.0
    """largest gradient norm, of the parameters that head 1 uses and of all others apart; 0 means no clipping"""
    head_weights: str = "far:0.02"
    """share of each head's gradient that reaches the parameters that head 1 uses: equal (all of it), far:W (W of heads
    2 to n), or geometric:R (R of head 2, R^2 of head 3, ...)"""
    head_schedule: Literal["constant", "late", "anneal", "forward", "reverse", "deepseek"] = "constant"
    """how these shares change over the run: not at all, from zero after 70 % of it (late), linearly to zero, head by
    head, where each in turn joins (forward) or, the farthest first, drops out (reverse), or to a third after two thirds
    (deepseek).  Their own parameters learn in full from `far_from` on"""
    seed: int = 0
    """seed of the weights and of the data order"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """arithmetic of the matrix products; auto takes bfloat16 where the processor has it"""
    compile: Literal["auto", "true", "false"] = "auto"
    """torch.compile of the transformer layers; auto compiles runs that are long enough to pay for it"""
    backward: Literal["sequential", "joint"] = "sequential"
    """sequential: one head at a time, memory does not grow with n_future; joint: all heads at once"""
    activation_checkpointing: bool = False
    """keep only each trunk layer's input and recompute the rest in the backward pass"""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """several processes: each has the whole model (ddp), or an N-th of its layers' weights, gradients and optimizer
    (fsdp); auto takes fsdp where the whole does not fit on a CUDA device"""
    shards: int = 0
    """of fsdp: so many adjacent ranks share one copy of the model, of which there are several (HSDP); it must divide
    the number of processes.  0 means that all share a single copy"""
    context_parallel: int = 1
    """so many adjacent ranks share out the positions of each row, for rows that are too long for one; it must divide
    the number of processes, of attention heads (also of keys) and of bytes in a row"""
    log_every: int = 10
    """steps between two train lines of metrics.jsonl"""
    valid_every: int = 200
    """steps between two validations; there is always one at the end, with 0 no other"""
    valid_bytes: int = 1 << 18
    """bytes of held-out rows that a validation reads, if there are so many; rounded up to whole batches"""
    checkpoint_every: int = 500
    """steps between two checkpoints; there is always one at the end"""
    keep_checkpoints: int = 2
    """newest checkpoints to keep, beside the best in validation"""
    sample_bytes: int = 160
    """bytes of sample printed at each validation; 0 means none"""
    tensorboard: bool = False
    """also write TensorBoard event files into RUN/tensorboard (extra: tensorboard)"""
    freeze: Literal["none", "trunk"] = "none"
    """trunk: whatever head 1's logits come from stays as --init gave it, and only the other heads learn, from all rows
    of the corpus (so far_rows is 1, and far_from, first_seq_len and repeat_rows are 0)"""
    epochs: int = 0
    """passes over the data; the corpus is counted first, and `steps` follows from that.  0 means by steps"""

    @property
    def warmup_steps(self) -> int:
        """`warmup`, but of a run by steps no more than a tenth."""
        return self.warmup if self.minutes else min(self.warmup, math.ceil(LONGEST_WARMUP * self.steps))

    def __post_init__(self) -> None:
        _check_numbers("train", self, MAX_COUNT)
        counts = ("batch_size", "accumulate", "seq_len", "valid_bytes", "keep_checkpoints", "context_parallel")
        for name in (*counts, "log_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; it must be at least 1")
        sizes = ("weight_decay", "grad_clip", "valid_every", "sample_bytes", "seed", "first_seq_len", "shards")
        for name in ("steps", "minutes", "epochs", "warmup", *sizes):
            _require(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; it must be 0 or more")
        head_weights(self.head_weights, 1)
        for name in ("grow_at", "repeat_rows", "repeat_until", "far_from", "tv_from"):
            _require(0 <= getattr(self, name) <= 1, f"train.{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("far_rows", "decay"):
            share = getattr(self, name)
            _require(0 < share <= 1, f"train.{name} is {share}; it must be above 0 and at most 1")
        _require(
            not (self.minutes and self.epochs),
            f"train.minutes is {self.minutes:g} and train.epochs {self.epochs}; a run has one length, so set one to 0",
        )
        for name in ("lr", "embedding_lr", "unembedding_lr"):
            _require(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}; it must be above 0")
        _require(0 <= self.final_lr <= 1, f"train.final_lr is {self.final_lr}; it must be from 0 to 1")
        _require(
            self.batch_size % self.accumulate == 0,
            f"train.accumulate is {self.accumulate}; it must divide train.batch_size ({self.batch_size})",
        )


def head_weights(text: str, n: int) -> list[float]:
    """Weights of n heads as `train.head_weights` spells them; that of head 1 is always 1.

    UserError for anything else.
    """
    kind, _, number = text.partition(":")
    try:
        value = 1.0 if text == "equal" else float(number)
    except ValueError:
        value = math.nan
    _require(
        0 <= value <= 1 and (text == "equal" or kind in ("far", "geometric")),
        f"train.head_weights is {text!r}; it must be equal, far:W or geometric:R with a number from 0 to 1",
    )
    return [1.0] + [value**i if kind == "geometric" else value for i in range(1, n)]


def scheduled_weights(weights: Sequence[float], schedule: str, done: float) -> list[float]:
    """Weights of the heads when the share `done` of a run is over, by `train.head_schedule`.

    late: far heads put off the step at which a small model begins to copy, and harm one that does far less (NOTES.md).
    anneal: Marin and modded-nanogpt end so, too.  forward, reverse: curricula over the number of heads in n equal
    stages (Aynetdinov & Akbik 2025, arXiv 2505.22757); there, heads that do not take part are not trained either.
    deepseek: a third after 10 of 14.8 parts, as 0.3 became 0.1 in DeepSeek-V3 (arXiv 2412.19437, section 4.2).
    """
    n, done = len(weights), min(max(done, 0.0), 1.0)
    stage = min(n, int(done * n) + 1)
    taking_part = {"forward": stage, "reverse": n + 1 - stage}.get(schedule, n)
    scales = {"late": float(done >= 0.7), "anneal": 1 - done, "deepseek": 1.0 if done < 10 / 14.8 else 1 / 3}
    scale = scales.get(schedule, 1.0)
    return [weights[0]] + [scale * weight if i < taking_part else 0.0 for i, weight in enumerate(weights) if i]


@dataclass(frozen=True)
class DataConfig:
    """What is read and how."""

    decompress: bool = True
    """open what is compressed, archives and lines of JSON; false trains on the bytes as they lie"""
    format: DataFormat = "auto"
    """what the files are once decompressed; auto: as their names say.  raw: one document each.  earlier: as auto was in
    runs of older versions, which knew fewer names, opened no members of archives and left nothing out"""
    exclude: tuple[str, ...] = ()
    """patterns of files and folders to leave out, such as *.log or build, beside .git, .DS_Store and the like"""
    text_field: str = "text"
    """field of a .jsonl line that holds the document"""
    valid_fraction: float = 0.02
    """share of the documents held out for validation"""
    shuffle: bool = True
    """shuffle the files of each epoch, and the rows inside a bounded buffer, by train.seed"""
    on_corrupt: Literal["error", "skip"] = "error"
    """a damaged or unreadable input: stop, or leave it out and count it"""
    on_change: Literal["error", "warn"] = "error"
    """a resumed run finds files of another size or time than it began with: stop, or say so and go on with them"""
    valid_paths: tuple[str, ...] = ()
    """files, folders and globs to validate on; nothing else of PATH is then held out"""
    weights: tuple[float, ...] = ()
    """a number for each PATH, the largest at least 1: how often an epoch reads its documents.  2.5 is twice, and then a
    random half of them, in the next epoch the other half.  Empty means 1 for all"""
    sweeps: int = 0
    """how often an epoch goes through the files, each time for another random share of their documents; 0 chooses by
    their sizes"""

    def __post_init__(self) -> None:
        _require(
            0 <= self.valid_fraction < 1, f"data.valid_fraction is {self.valid_fraction}; it must be from 0 to below 1"
        )
        _require(
            0 <= self.sweeps <= (MAX_SWEEPS if self.shuffle else 1),
            f"data.sweeps is {self.sweeps}; it must be from 0 to {MAX_SWEEPS}, and 0 or 1 where data.shuffle is false",
        )
        check_weights(self.weights, len(self.weights), "data.weights")
        _require(
            "-" not in self.valid_paths,
            "data.valid_paths holds -, but standard input can only be trained on; save it to a file and name that",
        )
        _require(
            all(pattern.strip("./") for pattern in self.exclude),
            f"data.exclude is {list(self.exclude)}; a pattern must name something",
        )

    def reading(self) -> dict[str, Any]:
        """How the files are read, as arguments of `bytemtp.stream`."""
        names = ("decompress", "text_field", "format", "on_corrupt")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Settings:
    """All settings of a run.  `RUN/config.toml` holds them resolved."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)


def check_weights(weights: Sequence[float], paths: int, name: str = "weights") -> None:
    """UserError unless there are none, or one for each of so many paths that lets no epoch be empty."""
    _require(
        len(weights) in (0, paths),
        f"{name} has {len(weights)} numbers for {paths} paths; give one for each (a pattern in quotes is one path)",
    )
    for weight in weights:
        allowed = 0 < weight <= MAX_WEIGHT
        _require(allowed, f"{name} has {weight:g}; each must be above 0 and at most {MAX_WEIGHT:g}")
    most = max(weights, default=1)
    _require(most >= 1, f"{name} has {most:g} at most; it must have a number from 1 on, for what an epoch reads whole")


RETIRED = frozenset({"train.valid_batches"})
"""Settings of older versions.  Files that a run wrote may name them; in files written by hand they are unknown."""

EARLIER = {
    "model.qk_norm": False,
    "train.schedule": "cosine",
    "train.head_weights": "equal",
    "data.format": "earlier",
    "model.transitions": False,
    "train.embedding_lr": 1.0,
    "train.unembedding_lr": 1.0,
    "train.repeat_rows": 0.0,
    "train.far_from": 0.0,
    "train.head_schedule": "constant",
}
"""What was so before there were these settings: a run's file that lacks them means this."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _check_numbers(section: str, config: Any, most: int) -> None:
    """UserError for a number that nothing can be computed with: inf, nan, or far too large."""
    for name, value in vars(config).items():
        if isinstance(value, int | float):
            limit = MAX_REAL if isinstance(value, float) else MAX_SEED if name == "seed" else most
            _require(abs(value) <= limit, f"{section}.{name} is {value}; it must be a number of at most {limit}")


def flatten(settings: Settings) -> dict[str, Any]:
    """`{"model.dim": 256, ...}`: every setting by its dotted name, in the order of the classes."""
    tables = dataclasses.asdict(settings)
    return {f"{section}.{name}": value for section, table in tables.items() for name, value in table.items()}


def unflatten(values: dict[str, Any]) -> Settings:
    """The inverse of `flatten`; settings that `values` leaves out have the default of their class.

    UserError for a value of the wrong type.  Names must have been checked (`check_names`).
    """
    tables: dict[str, dict[str, Any]] = {section.name: {} for section in dataclasses.fields(Settings)}
    for name, value in values.items():
        section, _, key = name.partition(".")
        tables[section][key] = _typed(name, value)
    return Settings(ModelConfig(**tables["model"]), TrainConfig(**tables["train"]), DataConfig(**tables["data"]))


def changed(settings: Settings, **values: Any) -> Settings:
    """A copy with other values: `changed(settings, **{"train.steps": 10})`."""
    check_names(values, flatten(settings), "changed()")
    return unflatten(flatten(settings) | values)


def to_toml(settings: Settings, run: dict[str, Any]) -> str:
    """Text of `RUN/config.toml`: all settings, and what is known about the run in a `[run]` table."""
    return tomli_w.dumps({**dataclasses.asdict(settings), "run": run})


def read_toml(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by dotted name, as written, and the `[run]` table of a TOML file.

    UserError if the file cannot be read or names a setting that does not exist.
    """
    try:
        data = path.read_bytes()
        tables = tomllib.loads(data.decode("utf-8-sig", "surrogateescape"))  # a run may have paths that are no UTF-8
        if "run" not in tables:
            data.decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # what is no TOML, no UTF-8, or a whole number of thousands of digits
        raise UserError(f"{path} is not valid TOML: {error}") from None
    run = tables.pop("run", {})
    values: dict[str, Any] = {}
    for section, table in tables.items():
        # A name outside any section stays as it is, and is then reported as unknown.
        entries = table.items() if isinstance(table, dict) else [("", table)]
        values |= {f"{section}.{key}".rstrip(".").replace("-", "_"): value for key, value in entries}
    if run:
        # A run of an older version can be resumed and decoded; it validates as this version does.
        values = {name: value for name, value in (EARLIER | values).items() if name not in RETIRED}
    check_names(values, flatten(Settings()), str(path))
    return values, run


def load_settings(path: Path, base: Settings | None = None) -> tuple[Settings, dict[str, Any]]:
    """Settings and `[run]` table of a TOML file; what it does not name is as in `base`, or the default.

    UserError names the file.
    """
    values, run = read_toml(path)
    try:
        return unflatten(flatten(base or Settings()) | values), run
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """UserError for the first name that is not known, with the nearest one that is."""
    known = list(known)
    for name in names:
        check_known(name, known, f"setting {name!r} in {where}", "--help lists them all")


@cache
def _kinds() -> dict[str, Any]:
    """Types of all settings."""
    sections = get_type_hints(Settings).items()
    return {f"{section}.{key}": kind for section, config in sections for key, kind in get_type_hints(config).items()}


def _typed(name: str, value: Any) -> Any:
    """`value`, if it has the type of the setting; a whole number may stand for a real one."""
    kind = _kinds()[name]
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        is_list = isinstance(value, list | tuple)
        values = [float(one) if item is float and type(one) is int else one for one in value] if is_list else []
        right = is_list and all(type(one) is item for one in values)
        _require(right, f"{name} is {value!r}; it must be a list of {'strings' if item is str else 'numbers'}")
        return tuple(values)
    if choices := get_args(kind):
        _require(value in choices, f"{name} is {value!r}; choose from {', '.join(choices)}")
        return value
    if kind is float and type(value) is int:
        return float(value) if abs(value) <= MAX_REAL else math.inf
    _require(type(value) is kind, f"{name} is {value!r}; it must be of type {kind.__name__}")
    return value
