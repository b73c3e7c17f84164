"""A model from a Hugging Face folder: the way back from `bytemtp.model.huggingface`, for training to start from.

    config.json         LlamaForCausalLM, MistralForCausalLM or Qwen3ForCausalLM; 256 to 264 ids, 0-255 the bytes
    model.safetensors   or its parts, which model.safetensors.index.json names
    tokenizer.json      it must say the same about the bytes; a folder without any tokenizer needs none

The model has one head, so that its layers are the folder's.  Rows of ids that the folder lacks (256, the end of text,
if it has only the bytes) are drawn anew; rows beyond 256 are left behind.

Try:  python -c "from bytemtp.model.from_huggingface import load_folder; print(load_folder('DIR'))"
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.files import read_object
from bytemtp.common.runtime import log
from bytemtp.common.settings import ModelConfig, unflatten
from bytemtp.common.vocab import EOT, PADDED_VOCAB_SIZE
from bytemtp.model.checkpoint import load_tensors
from bytemtp.model.huggingface import FULL, SLIDING, WINDOW, byte_alphabet, llama_views
from bytemtp.model.layers import NORM_EPSILON
from bytemtp.model.model import ByteMTP

BYTES = 256
_, MISTRAL, QWEN3 = ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM")
ROWS = ("model.embed_tokens.weight", "lm_head.weight")
NEEDED = "to start from it, it must be a byte-level Llama, Mistral or Qwen3, as `python -m bytemtp.export` writes"


def load_folder(folder: Path, seed: int = 0) -> ByteMTP:
    """The folder's model in float32, with one head; `seed` draws the rows that the folder lacks.

    UserError says what the folder holds that is none of ours.
    """
    config = config_of_folder(folder)
    _check_tokenizer(folder)
    model = ByteMTP(config, seed)
    tensors, found = _tensors(folder), read_object(folder / "config.json")
    if SLIDING in _layer_types(found):
        model.trained_length = found.get("sliding_window") or 0
    if found.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = tensors.get(ROWS[0], torch.empty(0))
    _fill(llama_views(model), tensors, folder)
    if len(tensors[ROWS[0]]) == BYTES:
        log(f"{folder} has no row of the end of text: row {EOT} is drawn anew")
    return model


def config_of_folder(folder: Path) -> ModelConfig:
    """Shape of the model in a Hugging Face folder, with one head.  UserError if bytemtp has no such model."""
    path = folder / "config.json"
    found = read_object(path)
    try:
        if wrong := [what for what, is_wrong in _differences(found).items() if is_wrong]:
            raise UserError(f"found {', '.join(wrong)}; {NEEDED}")
        rope = found.get("rope_parameters") or {}
        shape = {
            "dim": found["hidden_size"],
            "layers": found["num_hidden_layers"],
            "attention_heads": found["num_attention_heads"],
            "kv_heads": _kv_heads(found),
            "ffn_dim": found["intermediate_size"],
            "n_future": 1,
            "topology": "replicated",
            "rope_theta": float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
            "window": _window(found),
            "qk_norm": _architecture(found) == QWEN3,
        }
        return unflatten({f"model.{name}": value for name, value in shape.items()}).model
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; {NEEDED}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); {NEEDED}") from None


def _differences(found: dict[str, Any]) -> dict[str, bool]:
    """What the file says that our layers do not do: `name = value`, and whether it is so."""
    heads, eos = found.get("num_attention_heads", 1), found.get("eos_token_id")
    width = found.get("hidden_size", 0) / heads if isinstance(heads, int) and heads else 0
    by_layer = "layer_types" if found.get("layer_types") else "max_window_layers"
    wrong: dict[str, Callable[[Any], bool]] = {
        "vocab_size": lambda size: size not in range(BYTES, PADDED_VOCAB_SIZE + 1),
        "hidden_act": lambda name: name not in (None, "silu"),
        "rms_norm_eps": lambda epsilon: epsilon != NORM_EPSILON,
        "head_dim": lambda dim: dim not in (None, width),
        "attention_bias": bool,
        by_layer: lambda _: _layer_types(found) not in ({FULL}, {SLIDING}),
        "mlp_bias": bool,
        "rope_scaling": lambda scaling: not _is_plain(scaling),
        "rope_parameters": lambda scaling: not _is_plain(scaling),
        # transformers writes 2 where nobody has set it: a byte, so no id for the end of text
        "eos_token_id": lambda _: any(i in range(BYTES, PADDED_VOCAB_SIZE) and i != EOT for i in _as_list(eos)),
    }
    lines = {f"{name} = {found.get(name)!r}": is_wrong(found.get(name)) for name, is_wrong in wrong.items()}
    return {f"architectures = {found.get('architectures')!r}": _architecture(found) not in ARCHITECTURES} | lines


def _architecture(found: dict[str, Any]) -> str:
    return str((_as_list(found.get("architectures")) or [""])[0])


def _kv_heads(found: dict[str, Any]) -> int:
    heads = found.get("num_key_value_heads")
    return 0 if heads in (None, found["num_attention_heads"]) else heads


def _window(found: dict[str, Any]) -> int:
    """A folder of ours says apart what model.window was, since a run without one has a sliding window, too."""
    return found.get(WINDOW, found.get("sliding_window") or 0) if SLIDING in _layer_types(found) else 0


def _layer_types(found: dict[str, Any]) -> set[str]:
    """How layers look back, as transformers takes it from the file: Qwen3's may differ."""
    if _architecture(found) != QWEN3 or not found.get("use_sliding_window"):
        return {SLIDING if _architecture(found) == MISTRAL else FULL}
    if found.get("layer_types"):
        return set(found["layer_types"])
    return {SLIDING if i >= found["max_window_layers"] else FULL for i in range(found["num_hidden_layers"])}


def _is_plain(scaling: Any) -> bool:
    return not scaling or (
        isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) == "default"
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []


def _check_tokenizer(folder: Path) -> None:
    """Many a byte vocabulary begins with special ids, so that byte b is not id b."""
    path = folder / "tokenizer.json"
    if not path.exists():
        if (kind := folder / "tokenizer_config.json").exists():  # as of ByT5 and Perceiver, whose ids are shifted
            name = read_object(kind).get("tokenizer_class")
            raise UserError(f"{kind} names a {name}, and without {path.name} its ids are not known; {NEEDED}")
        log(f"{folder} has no {path.name}: its ids 0-255 are taken for the bytes 0-255")
        return
    found = read_object(path).get("model")
    vocabulary = found.get("vocab") if isinstance(found, dict) else None
    ids = vocabulary if isinstance(vocabulary, dict) else {}
    for byte, character in enumerate(byte_alphabet()):
        if (found_id := ids.get(character, ids.get(f"<0x{byte:02X}>"))) != byte:
            raise UserError(f"{path} gives byte {byte} the id {found_id}, ours is {byte}; {NEEDED}")


def _fill(views: dict[str, Tensor], tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy every tensor into its place.  UserError if one is missing, is left over or has another shape."""
    unknown = sorted(name for name in tensors.keys() - views.keys() if not name.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise UserError(f"{folder} holds {unknown[0]} (and {len(unknown) - 1} more), which its kind lacks; {NEEDED}")
    for name, view in views.items():
        if name not in tensors:
            raise UserError(f"{folder} lacks the weights {name}; {NEEDED}")
        with torch.no_grad():
            _copy_rows(view, tensors[name], name, folder)


def _copy_rows(view: Tensor, tensor: Tensor, name: str, folder: Path) -> None:
    rows = len(tensor) if tensor.dim() else 0
    allowed = range(BYTES, PADDED_VOCAB_SIZE + 1) if name in ROWS else (len(view),)
    if rows not in allowed or tensor.shape[1:] != view.shape[1:]:
        raise UserError(f"{folder}: {name} has shape {list(tensor.shape)}, config.json means {list(view.shape)}")
    view[:rows].copy_(tensor[: len(view)])


def _tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    parts = {"model.safetensors"}
    if not (folder / "model.safetensors").exists() and index.exists():
        places = read_object(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
            raise UserError(f"{index} names no weights; {NEEDED}")
        parts = set(places.values())
    tensors: dict[str, Tensor] = {}
    for part in sorted(parts):
        tensors |= load_tensors(folder / part, NEEDED)
    return tensors
