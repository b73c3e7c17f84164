"""Start from what exists: the weights of a run, or of a Hugging Face folder, for a model with other heads.

From the embedding to head 1's logits every topology is one Llama, so layer j of one model's path to head 1 is layer j
of the other's, whether it belongs to the trunk or to a head.  Further heads are taken if both have the same topology.

    source       parallel, 3 heads       model        linear, 2 heads
      embed ─────────────────────────────▶ embed
      trunk 0, trunk 1, head 1's layer ──▶ trunk 0, trunk 1, trunk 2
      norm, unembedding ─────────────────▶ norm, unembedding
      layers of heads 2 and 3   dropped    matrix of head 2   drawn anew

New heads are drawn at random, except that a `replicated` or `branched` one begins with head 1's unembedding, and the
layer of branched ones with head 1's: tried on a small frozen model with replicated heads, that was ahead from the first
steps on (head 2 after 100 steps: 4.47 bits per byte, drawn at random 4.56).
Tables of transitions go with their heads; those that the source lacks begin at zero, which changes no logit.
An order head is taken if both models have one.

Try:  python -m bytemtp.train PATH --out RUN2 --init RUN --model.n-future 8
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bytemtp.common.errors import UserError
from bytemtp.common.settings import MAX_FUTURE, ModelConfig
from bytemtp.model.checkpoint import checkpoint_of, load_model, settings_of
from bytemtp.model.from_huggingface import config_of_folder, load_folder
from bytemtp.model.model import ByteMTP

SHAPE = ("dim", "attention_heads", "key_value_heads", "ffn_dim", "rope_theta", "window", "qk_norm")
"""What the layers of the path to head 1 are like, beside their number."""


def find_source(path: Path) -> Path:
    """The folder whose weights `path` stands for: a step folder of a run, or `path` itself if it is Hugging Face's.

    UserError if it is neither.
    """
    with _hint(path):
        return path if _is_huggingface(path) else checkpoint_of(path)


def source_config(path: Path) -> ModelConfig:
    """Shape of the model that `path` stands for, without an order head, which belongs to the training that it had.

    UserError as for `find_source`.
    """
    with _hint(path):
        return config_of_folder(path) if _is_huggingface(path) else replace(settings_of(path).model, order_head=False)


@contextmanager
def _hint(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        other = "" if _is_huggingface(path) else ", or a Hugging Face folder (one with a config.json)"
        raise UserError(f"cannot start from {path}: {error}{other}") from None


def load_source(source: Path, seed: int) -> ByteMTP:
    """The model in a folder that `find_source` found; `seed` draws what a Hugging Face folder lacks."""
    return load_folder(source, seed) if _is_huggingface(source) else load_model(source)


def _is_huggingface(path: Path) -> bool:
    return (path / "config.json").exists()


def path_layers(config: ModelConfig) -> int:
    """Layers from the embedding to head 1's final norm."""
    of_heads = config.head_layers
    return config.trunk_layers + (of_heads if config.topology == "anticausal" else min(1, of_heads))


def with_path_of(config: ModelConfig, source: ModelConfig) -> ModelConfig:
    """`config` with as many `layers` as give its path to head 1 the length of the source's.

    UserError if that cannot be: anticausal heads are all on that path.
    """
    length = path_layers(source)
    if config.topology == "anticausal" and config.n_future > length:
        raise UserError(
            f"model.n_future is {config.n_future}, but the model to start from has {length} layers, all on the path to "
            "head 1, and anticausal heads are layers of that path; lower model.n_future or choose another topology"
        )
    roomy = replace(config, layers=length + MAX_FUTURE)
    return replace(config, layers=roomy.layers + length - path_layers(roomy))


def check_shape(config: ModelConfig, source: ModelConfig, name: Path | str) -> None:
    """UserError unless the paths to head 1 are alike."""
    for field in SHAPE:
        ours, theirs = getattr(config, field), getattr(source, field)
        if ours != theirs:
            setting = "kv_heads" if field == "key_value_heads" else field
            raise UserError(f"model.{setting} is {ours} but {name} has {theirs}; leave it out to start from {name}")
    if path_layers(config) != path_layers(source):
        needed = with_path_of(config, source).layers
        raise UserError(
            f"model.layers is {config.layers}, which gives head 1 {path_layers(config)} layers, but {name} has "
            f"{path_layers(source)}; leave it out, or make it {needed}"
        )


def take(model: ByteMTP, source: ByteMTP) -> str:
    """Copy into `model` whatever of `source` has a place there; returns what was taken, drawn anew and dropped.

    The paths to head 1 must be alike (`check_shape`).
    """
    for ours, theirs in zip(_with_weights(model), _with_weights(source), strict=True):
        _copy(ours, theirs)
    n, theirs_n = model.config.n_future, source.config.n_future
    shared = min(n, theirs_n) if model.config.topology == source.config.topology else 1
    for i in range(1, shared):
        _copy(model.links[i], source.links[i])
    if model.config.topology == "branched" and shared == 1 < n:
        _copy(model.links[1], model.links[0])
    for i in range(1, len(model.unembed)):
        _copy(model.unembed[i], source.unembed[i if i < shared else 0])
    has_tables, had_tables = (one.transitions is not None for one in (model, source))
    tabled = _copy_tables(model, source, shared)
    copies = "begin as copies of head 1"
    new = {"anticausal": "read layers of that path", "replicated": copies, "branched": copies}
    parts = {
        "taken": f"embedding, {path_layers(model.config)} layers, norm, {_heads(0, shared)}",
        new.get(model.config.topology, "drawn anew"): _heads(shared, n),
        "transitions begin at zero": _heads(tabled, n) if has_tables else "",
        "transitions dropped": _heads(1, shared) if had_tables and not has_tables else "",
        "dropped": _heads(shared, theirs_n),
        "order head": _take_order_head(model.order_head, source.order_head),
    }
    return "; ".join(f"{what}: {which}" for what, which in parts.items() if which)


def _with_weights(model: ByteMTP) -> list[nn.Module]:
    """Head 1's modules, without the link of a head that reads the trunk itself."""
    return [module for module in model.first_modules() if not isinstance(module, nn.Identity)]


def _copy_tables(model: ByteMTP, source: ByteMTP, shared: int) -> int:
    """Transitions of the first `shared` heads, if both models have them; returns from which head on they are new."""
    if model.transitions is None or source.transitions is None:
        return 1
    with torch.no_grad():
        model.transitions[: shared - 1] = source.transitions[: shared - 1]
    return shared


def _take_order_head(ours: nn.Module | None, theirs: nn.Module | None) -> str:
    """What becomes of it; nothing where neither model has one."""
    if ours is not None and theirs is not None:
        _copy(ours, theirs)
        return "taken"
    return "drawn anew" if ours is not None else "dropped" if theirs is not None else ""


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict())


def _heads(first: int, end: int) -> str:
    """Heads from index `first` to before `end`, counted from 1."""
    if end <= first:
        return ""
    return f"head {end}" if end == first + 1 else f"heads {first + 1} to {end}"


def freeze_path(model: ByteMTP) -> None:
    """No gradient for what head 1's logits come from.  UserError if nothing else would be left to train."""
    if model.order_head is not None:
        raise UserError(
            "train.freeze is trunk and model.order_head true, but an order head only trains the trunk; set it to false"
        )
    for module in model.first_modules():
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        config = model.config
        raise UserError(
            f"train.freeze is trunk, but with model.n_future {config.n_future} and {config.topology} heads nothing is "
            "left to train; raise model.n_future, or choose a topology other than anticausal"
        )
