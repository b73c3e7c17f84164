"""Where a run starts: from weights drawn at random or from those that exist (`--init`), with the trunk frozen or not.

Try:  python -m bytemtp.train PATH --out RUN2 --init RUN --model.n-future 8 --train.freeze trunk
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bytemtp.common.errors import UserError
from bytemtp.common.runtime import log
from bytemtp.common.settings import ModelConfig, Settings, TrainConfig, changed
from bytemtp.model.initial import check_shape, find_source, freeze_path, load_source, source_config, take
from bytemtp.model.model import ByteMTP

ALL_FOR_HEADS = {"first_seq_len": 0, "far_rows": 1.0, "far_from": 0.0, "repeat_rows": 0.0}
"""Settings of `train` where nothing but heads 2 to n learns."""


def record_source(init: Path | None, run: Path, *, resume: bool) -> dict[str, Any]:
    """What the `[run]` table says about `init`: the step folder that it stands for now; nothing without `init`.

    UserError if there is nothing to start from, or if it is the run itself.
    """
    if init is None:
        return {}
    if resume:
        raise UserError("--init and --resume exclude each other; a resumed run goes on from its own checkpoint")
    source = find_source(init)
    if source.resolve().is_relative_to(run.resolve()):
        raise UserError(f"--init {init} lies in --out {run}, which is to be written; choose another --out")
    return {"init": str(source.absolute())}


def check_size(config: ModelConfig) -> None:
    """UserError for a model whose weights alone do not fit into this machine's memory."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (needed := 4 * config.least_parameters) > there:
        raise UserError(
            f"model.layers {config.layers}, model.dim {config.dim} and model.ffn_dim {config.ffn_dim} are at least "
            f"{needed / 2**30:,.0f} GiB of weights, and this machine has {there / 2**30:,.0f}; lower one of them"
        )


def with_layers_for_heads(model: ModelConfig, layers: int) -> ModelConfig:
    """As many layers as the preset has, or as the heads and one layer of the trunk need if that is more."""
    needed = 1 + (model.head_layers if model.parity else 0)
    if needed > layers:
        log(
            f"model.layers: {needed} ({model.head_layers} of {model.n_future} {model.topology} heads and one of the "
            f"trunk; the preset has {layers})"
        )
    return replace(model, layers=max(layers, needed))


def start_from(model: ByteMTP, source: Path, train: TrainConfig) -> None:
    """Take the weights of a folder that `record_source` named.  UserError if they do not fit the model."""
    check_shape(model.config, source_config(source), source)
    there = load_source(source, train.seed)
    log(f"init: {source}: {take(model, there)}")
    reach = min(model.config.window or train.seq_len, train.seq_len)
    if train.freeze != "none" and there.reach != reach:
        far = f"{there.reach} bytes back" if there.reach else "back without limit"
        log(f"warning: the source looks {far}, and frozen or not this run will look {reach}")


def check_frozen(train: TrainConfig, *, has_source: bool) -> None:
    """UserError if what `train.freeze` keeps has never learned."""
    if train.freeze != "none" and not has_source:
        raise UserError("train.freeze is trunk, but the trunk is drawn at random; name trained weights with --init")


def for_frozen_trunk(settings: Settings) -> Settings:
    """The settings, with a frozen trunk those by which heads 2 to n learn from the first step on and from all rows.

    Rows have the length that the trunk has learned: a run that is stopped early writes what its source writes.
    """
    if settings.train.freeze == "none":
        return settings
    return changed(settings, **{f"train.{name}": value for name, value in ALL_FOR_HEADS.items()})


def freeze(model: ByteMTP, train: TrainConfig) -> None:
    """What `train.freeze` says.  UserError if that leaves nothing to train."""
    if train.freeze == "none":
        return
    freeze_path(model)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log(f"frozen: all that head 1's logits come from; {learning:,} parameters of the other heads learn")
