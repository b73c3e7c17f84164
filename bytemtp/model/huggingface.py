"""A Hugging Face folder of a model, which transformers loads without any code of ours.

    DIR/
        config.json  model.safetensors  generation_config.json      trunk and head 1: a Mistral, Llama or Qwen3
        tokenizer.json  tokenizer_config.json                       ids 0-255 are the bytes, 256 is <|endoftext|>
        README.md                                                   how to load it

The far heads stay behind: Llama has one.  The seven rows of padding in the vocabulary stay behind, too, because Llama
has no bias to shut them out; so the exported logits are the 257 that can have probability.

The law is that of our decoding, for texts of any length: a byte sees as far back as the model was trained to look,
train.seq_len or a shorter model.window.  So a run becomes a Mistral, which is a Llama with a sliding window, and only a
model that looks back without limit stays a Llama.  With model.qk_norm it is a Qwen3 in both cases: a Llama with those
norms, and with a sliding window if asked.

Writing needs safetensors alone; `check` loads the folder with transformers (extra: export) and compares.

Try:  python -m bytemtp.export RUN --out DIR --check
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bytemtp.common.errors import UserError
from bytemtp.common.files import filling
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.model.layers import NORM_EPSILON, Block, RMSNorm
from bytemtp.model.model import ByteMTP

EOT_TEXT = "<|endoftext|>"
WINDOW = "bytemtp_window"
"""Key of config.json for model.window, which sliding_window need not be.  transformers keeps what it does not know."""
FULL, SLIDING = "full_attention", "sliding_attention"
LONGEST = 32768
"""Positions that config.json and the tokenizer name, or more if the window has more: those of the first Mistral.  The
window sets no limit, but servers cut or refuse what is longer than this."""
CHECK_TOLERANCE = 1e-4
"""Largest difference of two float32 logits that rounding explains, relative to the largest logit (at least 1)."""
CHECK_STRINGS = 1000


def export(model: ByteMTP, folder: Path) -> None:
    """Write trunk and head 1 of `model`, and the tokenizer, into a new or empty folder.

    UserError if the folder holds something or cannot be written; then nothing is left behind.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is no empty folder; give --out a new one")
        with filling(folder) as new:
            save_file(llama_weights(model), new / "model.safetensors", metadata={"format": "pt"})
            for name, text in _texts(model):
                (new / name).write_text(text, encoding="utf-8")
            (new / "model.safetensors").chmod((new / "config.json").stat().st_mode)  # safetensors makes it private
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def _texts(model: ByteMTP) -> Iterator[tuple[str, str]]:
    """Names and contents of all files but the weights."""
    tokens = {"bos_token_id": EOT, "eos_token_id": EOT, "pad_token_id": EOT}
    objects = {
        "config.json": llama_config(model) | tokens,
        "generation_config.json": tokens,
        "tokenizer.json": byte_tokenizer(),
        "tokenizer_config.json": tokenizer_config(longest(model)),
    }
    for name, value in objects.items():
        yield name, json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    yield "README.md", model_card(model)


def architecture(model: ByteMTP) -> str:
    """Mistral is Llama with a sliding window, which counts as ours does: the position itself is one of the window.

    Qwen3 is either, with norms of queries and keys.
    """
    if model.config.qk_norm:
        return "Qwen3ForCausalLM"
    return "MistralForCausalLM" if model.reach else "LlamaForCausalLM"


def llama_config(model: ByteMTP) -> dict[str, Any]:
    """Content of config.json.

    The base of the rotation and the dtype stand there twice: transformers 5 reads `rope_parameters` and `dtype`,
    transformers 4 `rope_theta` and `torch_dtype`.
    """
    config, dtype = model.config, str(model.embed.weight.dtype).removeprefix("torch.")
    return {
        "architectures": [architecture(model)],
        "model_type": architecture(model).removesuffix("ForCausalLM").lower(),
        "vocab_size": VOCAB_SIZE,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": len(model.first_blocks()),
        "num_attention_heads": config.attention_heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPSILON,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "max_position_embeddings": longest(model),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "torch_dtype": dtype,
        **_window_keys(model),
    }


def _window_keys(model: ByteMTP) -> dict[str, Any]:
    """Qwen3 has a window only if asked, and in layers from number `max_window_layers` on: here all of them, or none."""
    layers = len(model.first_blocks())
    keys: dict[str, Any] = {"sliding_window": model.reach, WINDOW: model.config.window} if model.reach else {}
    if model.config.qk_norm:
        kind = SLIDING if model.reach else FULL
        keys |= {"use_sliding_window": bool(model.reach), "max_window_layers": 0 if model.reach else layers}
        keys |= {"layer_types": [kind] * layers}
    return keys


def llama_weights(model: ByteMTP) -> dict[str, Tensor]:
    """Weights by Llama's names, each with memory of its own, as safetensors wants them."""
    return {name: weight.detach().cpu().clone().contiguous() for name, weight in llama_views(model).items()}


def llama_views(model: ByteMTP) -> dict[str, Tensor]:
    """The parts of the model's own weights by Llama's names: what is written to them is written to the model."""
    _, unembedding, _ = model.unembedding(0)
    weights = {
        "model.embed_tokens.weight": model.embed.weight[:VOCAB_SIZE],
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": unembedding[:VOCAB_SIZE],
    }
    for i, block in enumerate(model.first_blocks()):
        weights |= {f"model.layers.{i}.{name}.weight": weight for name, weight in _layer_weights(block).items()}
    return weights


def _layer_weights(block: Block) -> dict[str, Tensor]:
    """Our q, k, v are one matrix, and so are gate and up; Llama has them apart.  Norms of q and k are Qwen3's."""
    width, inner = block.head_dim, block.ffn_out.in_features
    q, k, v = block.qkv.weight.split([block.heads * width, block.kv_heads * width, block.kv_heads * width])
    gate, up = block.gate_up.weight.split([inner, inner])
    norms = {"self_attn.q_norm": block.q_norm, "self_attn.k_norm": block.k_norm}
    return {name: norm.weight for name, norm in norms.items() if isinstance(norm, RMSNorm)} | {
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": block.attention_out.weight,
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": block.ffn_out.weight,
        "input_layernorm": block.attention_norm.weight,
        "post_attention_layernorm": block.ffn_norm.weight,
    }


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level BPE (GPT-2): printable ones for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def byte_tokenizer() -> dict[str, Any]:
    """Content of tokenizer.json: a byte-level BPE without merges, so each byte is its own token, after an EOT."""
    opening = {"SpecialToken": {"id": EOT_TEXT, "type_id": 0}}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

    def text(name: str, number: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": number}}

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": EOT, "content": EOT_TEXT, **special}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [opening, text("A", 0)],
            "pair": [opening, text("A", 0), text("B", 1)],
            "special_tokens": {EOT_TEXT: {"id": EOT_TEXT, "ids": [EOT], "tokens": [EOT_TEXT]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(byte_alphabet())},
            "merges": [],
        },
    }


def longest(model: ByteMTP) -> int:
    """Positions that the folder says a text may have."""
    return max(LONGEST, model.reach)


def tokenizer_config(positions: int) -> dict[str, Any]:
    """Content of tokenizer_config.json.  With `split_special_tokens` the text "<|endoftext|>" stays thirteen bytes."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOT_TEXT,
        "eos_token": EOT_TEXT,
        "pad_token": EOT_TEXT,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": positions,
    }


def model_card(model: ByteMTP) -> str:
    """Content of README.md.  The licence is for the owner of the weights to name."""
    config, path = model.config, model.first_blocks()
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

A byte-level language model: trunk and head 1 of a bytemtp model with {config.n_future} heads ({config.topology}).

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained("DIR"), AutoTokenizer.from_pretrained("DIR")
    ids = model.generate(**tokenizer("The ", return_tensors="pt"), max_new_tokens=100)
    print(tokenizer.decode(ids[0], skip_special_tokens=True))

- {len(path)} layers, width {config.dim}, {config.attention_heads} query and {config.key_value_heads} key heads.
- Ids 0-255 are the bytes; 256 is `{EOT_TEXT}`, which opens and ends a document. The tokenizer puts it in front.
- {_sight(model)}
"""


def _sight(model: ByteMTP) -> str:
    if not model.reach:
        return "A byte sees all that is before it."
    trained = f"Trained on rows of {model.trained_length} bytes: " if model.trained_length else ""
    return f"{trained}in texts of any length a byte sees the {model.reach} positions up to itself."


def check(model: ByteMTP, folder: Path) -> str:
    """Load `folder` with transformers and compare it with `model`; returns what was found.

    UserError if they differ.
    """
    transformers = import_transformers()
    difference = logit_difference(model, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))
    wrong = wrong_strings(transformers.AutoTokenizer.from_pretrained(folder))
    found = (
        f"logits differ by at most {difference:.1e}; {CHECK_STRINGS - len(wrong)} of {CHECK_STRINGS} texts come back"
    )
    if not difference <= CHECK_TOLERANCE or wrong:  # nan is no agreement
        raise UserError(
            f"{folder} is not what {architecture(model)} of transformers {transformers.__version__} needs: {found}"
        )
    return f"checked with transformers {transformers.__version__}: {found}"


@torch.no_grad()
def logit_difference(model: ByteMTP, llama: Any) -> float:
    """Largest difference of two logits, relative to the largest logit (at least 1), on random ids beyond the window."""
    shape = (1, model.reach + 64)
    ids = torch.randint(0, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(0))
    hidden = model.first_hidden(ids.to(model.device), model.reach)
    ours, theirs = model.logits(0, hidden)[..., :VOCAB_SIZE].cpu(), llama.eval()(ids).logits
    return float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1))


def wrong_strings(tokenizer: Any) -> list[bytes]:
    """Those of random byte strings whose decoded text is wrong, or (every second one is text) whose ids are."""
    dice, wrong = random.Random(0), []
    for number in range(CHECK_STRINGS):
        data = _random_text(dice).encode() if number % 2 else dice.randbytes(dice.randrange(40))
        text = data.decode("utf-8", "replace")
        back = tokenizer.decode(list(data)) == text
        if not back or (number % 2 and tokenizer.encode(text) != [EOT, *data]):
            wrong.append(data)
    return wrong


def _random_text(dice: random.Random) -> str:
    """Up to 20 characters of any length in UTF-8, and sometimes the text of the special token."""
    ranges = [(0x0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    text = "".join(chr(dice.randrange(*dice.choice(ranges))) for _ in range(dice.randrange(20)))
    return text + EOT_TEXT * (dice.random() < 0.1)


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"--check needs transformers ({error}); pip install 'bytemtp[export]', or leave it out"
        ) from error
    return transformers
