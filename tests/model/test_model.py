"""The model: a Llama along head 1, causal, blind across documents, with the parameter count that parity promises."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bytemtp.common.errors import UserError
from bytemtp.common.presets import PRESETS
from bytemtp.common.settings import LAYERED, ModelConfig, Topology
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.model.heads import DeepSeekModule
from bytemtp.model.layers import Block
from bytemtp.model.model import ByteMTP
from bytemtp.train import read_command

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=3)


def tiny(topology="parallel", **changes) -> ByteMTP:
    return ByteMTP(replace(TINY, topology=topology, **changes), seed=1)


def path_to_head_1(model: ByteMTP) -> list[Block]:
    """Blocks that a next-byte prediction runs through."""
    chain = next(chain for chain in model.chains if 0 in chain)
    links = [model.links[i] for i in chain[: chain.index(0) + 1]]
    return [*model.trunk, *(link for link in links if isinstance(link, Block))]


def as_llama(model: ByteMTP):
    """transformers' Llama with the weights of trunk + head 1."""
    transformers = pytest.importorskip("transformers")
    c, blocks = model.config, path_to_head_1(model)
    config = transformers.LlamaConfig(
        vocab_size=model.embed.num_embeddings, hidden_size=c.dim, intermediate_size=c.ffn_dim,
        num_hidden_layers=len(blocks), num_attention_heads=c.attention_heads, num_key_value_heads=c.key_value_heads,
        rms_norm_eps=1e-5, attn_implementation="sdpa",
        rope_parameters={"rope_theta": c.rope_theta, "rope_type": "default"},
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config)
    state = {"model.embed_tokens": model.embed, "model.norm": model.norm, "lm_head": model.unembed[0]}
    weights = {f"{name}.weight": module.weight for name, module in state.items()}
    for i, block in enumerate(blocks):
        sizes = [c.dim, *[c.key_value_heads * c.head_dim] * 2]
        parts = zip(("q_proj", "k_proj", "v_proj"), block.qkv.weight.split(sizes), strict=True)
        weights |= {f"model.layers.{i}.self_attn.{name}.weight": part for name, part in parts}
        weights[f"model.layers.{i}.self_attn.o_proj.weight"] = block.attention_out.weight
        gate, up = block.gate_up.weight.chunk(2)
        weights |= {f"model.layers.{i}.mlp.gate_proj.weight": gate, f"model.layers.{i}.mlp.up_proj.weight": up}
        weights[f"model.layers.{i}.mlp.down_proj.weight"] = block.ffn_out.weight
        weights[f"model.layers.{i}.input_layernorm.weight"] = block.attention_norm.weight
        weights[f"model.layers.{i}.post_attention_layernorm.weight"] = block.ffn_norm.weight
    llama.load_state_dict(weights)
    return llama.eval()


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_trunk_and_head_1_are_a_llama(topology, dtype, tolerance):
    """Rounding alone may differ: our gate is a strided view, and PyTorch's silu takes another loop for those.

    In float64, too: transformers rounds norms and angles to float32 there, and we do not.
    """
    model = tiny(topology).to(dtype)
    llama = as_llama(model).to(dtype)
    ids = torch.randint(0, VOCAB_SIZE, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model(ids)[0], llama(ids).logits
    torch.testing.assert_close(ours[..., :VOCAB_SIZE], theirs[..., :VOCAB_SIZE], atol=tolerance, rtol=0)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_padding_ids_never_get_probability(topology):
    with torch.no_grad():
        logits = tiny(topology)(torch.arange(257)[None])
    assert logits.shape == (3, 1, 257, 264)
    assert logits[..., :VOCAB_SIZE].isfinite().all() and (logits[..., VOCAB_SIZE:] == -torch.inf).all()


@settings(max_examples=40)
@given(topology=st.sampled_from(TOPOLOGIES), position=st.integers(0, 19), window=st.sampled_from([0, 3]))
def test_a_byte_changes_only_the_logits_that_may_see_it(topology, position, window):
    """Logits before it stay equal; in `deepseek`, head i may see i bytes further, and does."""
    model = tiny(topology, window=window).double()
    before = torch.arange(20)[None]
    after = before.clone()
    after[0, position] = 99
    with torch.no_grad():
        changed = (model(before) != model(after)).any(-1)[:, 0]
    for i in range(3):
        first = position - i if topology == "deepseek" else position
        assert not changed[i, : max(first, 0)].any()
        assert changed[i, max(first, 0)]


@settings(max_examples=40)
@given(
    topology=st.sampled_from(TOPOLOGIES),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    window=st.sampled_from([0, 4]),
)
def test_packed_documents_are_computed_as_if_alone(topology, lengths, window):
    model = tiny(topology, window=window).double()
    generator = torch.Generator().manual_seed(sum(lengths))
    documents = [torch.randint(0, 256, (length,), generator=generator) for length in lengths]
    document_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = model(torch.cat(documents)[None], document_ids).split(lengths, dim=2)
        for document, ours in zip(documents, packed, strict=True):
            alone = model(document[None])
            heads = 1 if topology == "deepseek" else 3  # beyond a document's end deepseek reads what comes next there
            torch.testing.assert_close(ours[:heads], alone[:heads], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_parity_keeps_parameters_and_costs_depth(topology):
    counts = {n: tiny(topology, n_future=n).num_parameters() for n in (1, 3, 5)}
    block = sum(p.numel() for p in Block(TINY).parameters())
    extra = {
        "linear": TINY.dim**2,
        "replicated": 264 * TINY.dim,
        "branched": 264 * TINY.dim,
        "deepseek": sum(p.numel() for p in DeepSeekModule(TINY).parameters()) - block,
    }.get(topology, 0)
    assert counts[3] - counts[1] == 2 * extra and counts[5] - counts[1] == 4 * extra
    depth = {"anticausal": 5, "branched": 4}.get(topology, 3 if topology in LAYERED else 5)
    assert len(path_to_head_1(tiny(topology, n_future=3))) == depth
    grown = tiny(topology, n_future=3, parity=False)
    layers = {"branched": 1}.get(topology, 2 if topology in LAYERED else 0)
    assert grown.num_parameters() - counts[1] == 2 * extra + layers * block


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_preset_takes_every_head_count_up_to_8(name, topology):
    """On the command line: where heads have layers, a preset of too few gets as many, and one for the trunk."""
    for n in range(1, 9):
        named = [f"--model.n-future={n}", f"--model.topology={topology}"]
        config = read_command(["corpus", "--out", "run", "--preset", name, *named]).settings.model
        assert (config.n_future, config.topology) == (n, topology)
        of_heads = min(n, 2) if topology == "branched" else n if topology in LAYERED else 0
        assert config.trunk_layers + of_heads == config.layers
        assert config.layers == max(PRESETS[name].model.layers, of_heads + 1)


@pytest.mark.parametrize(
    ("name", "billions"), [("300m", 0.23), ("600m", 0.55), ("1.3b", 1.24), ("3b", 2.84), ("7b", 6.48), ("13b", 12.7)]
)
def test_paper_presets_have_the_paper_sizes(name, billions):
    with torch.device("meta"):
        blocks = sum(p.numel() for p in Block(PRESETS[name].model).parameters()) * PRESETS[name].model.layers
    assert blocks / 1e9 == pytest.approx(billions, rel=0.03)


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    first = tiny().state_dict()
    torch.manual_seed(6)
    second = tiny().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = ByteMTP(replace(TINY, topology="parallel"), seed=2).state_dict()
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_untrained_loss_is_near_uniform():
    """The init's purpose: unit-variance streams and calm logits, whatever the depth."""
    model = ByteMTP(replace(PRESETS["nano"].model, topology="parallel", layers=24))
    ids = torch.randint(0, 256, (2, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids)[..., :VOCAB_SIZE]
    loss = torch.nn.functional.cross_entropy(logits[0, :, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert 5.5 < loss < 6.6  # ln 257 = 5.55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_future=6), "raise model.layers to at least 6"),
        (dict(n_future=33), "from 1 to 32"),
        (dict(attention_heads=3), "multiple of twice"),
        (dict(kv_heads=3), "must divide model.attention_heads"),
        (dict(window=-1), "0 .no window. or more"),
    ],
)
def test_impossible_shapes_say_what_to_change(changes, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, topology="parallel", **changes)


def test_unknown_bytes_ahead_are_read_as_end_of_text():
    model = tiny("deepseek")
    ids = torch.arange(10)[None]
    context = model.context(ids, 10)
    assert context.ahead(2)[0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, EOT, EOT]
