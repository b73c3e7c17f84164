"""Start from what exists: head 1 is the source's to the bit, heads may differ, and a frozen trunk stays as it is."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_file
from bytemtp.common.settings import (
    DataConfig,
    ModelConfig,
    Settings,
    Topology,
    TrainConfig,
    changed,
    load_settings,
    to_toml,
)
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.model.checkpoint import TrainState, latest, load_model, save
from bytemtp.model.from_huggingface import load_folder
from bytemtp.model.huggingface import export
from bytemtp.model.initial import check_shape, freeze_path, path_layers, take, with_path_of
from bytemtp.model.model import ByteMTP
from bytemtp.train import main, read_command
from bytemtp.training.loss import backward
from bytemtp.training.optimizer import Optimizers
from bytemtp.training.trainer import train

TOPOLOGIES = get_args(Topology)
MODEL = ModelConfig(
    dim=16,
    layers=4,
    attention_heads=2,
    kv_heads=1,
    ffn_dim=24,
    n_future=3,
    topology="parallel",
    rope_theta=500.0,
    window=9,
)
TRAIN = TrainConfig(
    steps=4, batch_size=4, seq_len=32, lr=1e-2, warmup=2, dtype="float32", compile="false", log_every=2, valid_every=2,
    valid_bytes=128, checkpoint_every=2, sample_bytes=0,
)  # fmt: skip
SETTINGS = Settings(MODEL, TRAIN, DataConfig(valid_fraction=0.2))
IDS = torch.randint(0, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))


def drawn(config: ModelConfig, seed: int = 1) -> ByteMTP:
    """With norms that are not one, so that one left out or exchanged shows."""
    model = ByteMTP(config, seed).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(sum(name.encode())))
    return model


def logits(model: ByteMTP, head: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[head]


def written_run(folder: Path, model: ByteMTP, steps: tuple[int, ...] = (1,)) -> Path:
    folder.mkdir(parents=True)
    write_file(folder / "config.toml", to_toml(replace(SETTINGS, model=model.config), {}))
    for step in steps:
        save(folder, TrainState(step=step), model, Optimizers(model, TRAIN), keep=9)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    dice = random.Random(0)
    for i in range(40):
        words = dice.choices(["alpha ", "beta ", "gamma\n"], k=dice.randint(8, 40))
        (folder / f"{i:02}.txt").write_text("".join(words))
    return str(folder)


configs = st.builds(
    lambda topology, n, parity, tables: replace(
        MODEL, topology=topology, n_future=n, parity=parity, transitions=tables and topology != "deepseek"
    ),
    st.sampled_from(TOPOLOGIES),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)


@given(configs, configs)
def test_head_1_is_the_sources_in_any_topology(ours: ModelConfig, theirs: ModelConfig) -> None:
    """Bit for bit; so are the further heads of the same topology.  Whatever is not taken is as drawn."""
    if ours.topology == "anticausal" and ours.n_future > path_layers(theirs):
        with pytest.raises(UserError, match=r"model\.n_future is \d, but the model to start from has \d layers"):
            with_path_of(ours, theirs)
        return
    ours = with_path_of(ours, theirs)
    check_shape(ours, theirs, "source")
    source, model = drawn(theirs, seed=1), drawn(ours, seed=2)
    if source.transitions is not None:
        torch.nn.init.normal_(source.transitions)
    told = take(model, source)
    assert torch.equal(logits(model), logits(source))
    same = ours.topology == theirs.topology
    shared = min(ours.n_future, theirs.n_future) if same else 1
    if model.transitions is not None:
        begun = shared if source.transitions is not None else 1
        assert begun == 1 or torch.equal(model.transitions[: begun - 1], source.transitions[: begun - 1])
        assert not model.transitions[begun - 1 :].any()
        assert ("transitions begin at zero" in told) == (begun < ours.n_future)
    for head in range(shared if ours.transitions == theirs.transitions else 1):
        assert torch.equal(logits(model, head), logits(source, head))
    assert ("; dropped" in told) == (theirs.n_future > shared)
    tables_go = shared > 1 and source.transitions is not None and model.transitions is None
    assert ("transitions dropped" in told) == tables_go
    drawn_anew = ours.n_future > shared and ours.topology not in ("anticausal", "replicated", "branched")
    assert ("drawn anew" in told) == drawn_anew


@given(configs)
def test_the_length_of_the_path_is_told_from_the_settings(config: ModelConfig) -> None:
    model = ByteMTP(config)
    assert path_layers(config) == len(model.first_blocks())
    assert with_path_of(config, config) == config


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_new_heads_are_as_the_seed_draws_them(topology: Topology) -> None:
    """But for unembeddings and the layer of branched heads, which begin as copies of head 1's."""
    config = with_path_of(replace(MODEL, topology=topology, n_future=3), replace(MODEL, n_future=1))
    model, fresh = ByteMTP(config, seed=2), ByteMTP(config, seed=2)
    take(model, drawn(replace(MODEL, n_future=1)))
    for name, parameter in model.named_parameters():
        is_new = topology not in ("anticausal", "branched") and name.startswith(("links.1", "links.2"))
        assert torch.equal(parameter, fresh.get_parameter(name)) == is_new, name
    if topology in ("replicated", "branched"):
        assert torch.equal(logits(model, 2), logits(model, 0))


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_an_exported_folder_comes_back(tmp_path: Path, topology: Topology, qk_norm: bool) -> None:
    source = drawn(replace(MODEL, topology=topology, qk_norm=qk_norm))
    export(source, tmp_path / "hf")
    back = load_folder(tmp_path / "hf").eval()
    assert torch.equal(logits(back)[..., :VOCAB_SIZE], logits(source)[..., :VOCAB_SIZE])
    assert back.config == replace(source.config, topology="replicated", n_future=1, layers=path_layers(source.config))


@pytest.mark.parametrize(("window", "length"), [(0, 32), (9, 32), (9, 4)])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_window_of_an_exported_run_comes_back(tmp_path: Path, window: int, length: int, qk_norm: bool) -> None:
    """Not the length of its rows, which is the sliding_window of the folder if it is shorter."""
    source = drawn(replace(MODEL, window=window, qk_norm=qk_norm))
    source.trained_length = length
    export(source, tmp_path / "hf")
    assert load_folder(tmp_path / "hf").config.window == window
    rewrite(tmp_path / "hf", bytemtp_window="far")
    with pytest.raises(UserError, match=r"config\.json"):
        load_folder(tmp_path / "hf")


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen3", "Qwen3 with a window"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_that_transformers_wrote(tmp_path: Path, kind: str, tied: bool) -> None:
    """As others make them: no tokenizer, other ids of special tokens by default, several files."""
    transformers = pytest.importorskip("transformers")
    more = {"Mistral": {"sliding_window": 5}, "Qwen3": {"head_dim": 8}}.get(kind, {})
    if kind == "Qwen3 with a window":
        more = {"head_dim": 8, "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0}
    kind = kind.split()[0]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=260, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, rms_norm_eps=1e-5, tie_word_embeddings=tied, max_position_embeddings=64, **more,
    )  # fmt: skip
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="10KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    model = load_folder(tmp_path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            logits(model)[..., :VOCAB_SIZE], theirs(IDS).logits[..., :VOCAB_SIZE], atol=1e-5, rtol=0
        )


def rewrite(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export(drawn(MODEL), tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("rows", [256, 257, 260, 264])
def test_vocabularies_of_bytes(exported: Path, rows: int) -> None:
    """Row 256 is the end of text; where there is none it is drawn, and what lies beyond is left behind."""
    weights = load_file(exported / "model.safetensors")
    spare = torch.full((7, MODEL.dim), 5.0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], spare])[:rows].clone()
    save_file(weights, exported / "model.safetensors")
    rewrite(exported, vocab_size=rows, eos_token_id=2 if rows == 256 else EOT)
    model = load_folder(exported, seed=3)
    fresh = ByteMTP(model.config, seed=3)
    assert torch.equal(model.embed.weight[:256], weights["model.embed_tokens.weight"][:256])
    assert torch.equal(model.embed.weight[EOT], fresh.embed.weight[EOT]) == (rows == 256)
    assert torch.equal(model.embed.weight[VOCAB_SIZE:], fresh.embed.weight[VOCAB_SIZE:])


def test_a_folder_in_parts_with_tied_embeddings(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    del weights["lm_head.weight"]
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, inside in parts.items():
        save_file({name: weights[name] for name in inside}, exported / part)
    (exported / "model.safetensors").unlink()
    places = {name: part for part, inside in parts.items() for name in inside}
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    rewrite(exported, tie_word_embeddings=True)
    model = load_folder(exported)
    assert torch.equal(model.unembedding(0)[1][:VOCAB_SIZE], model.embed.weight[:VOCAB_SIZE])
    assert torch.equal(model.norm.weight, weights["model.norm.weight"])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"architectures = \['GPT2LMHeadModel'\]"),
        ({"vocab_size": 32000}, "vocab_size = 32000"),
        ({"vocab_size": 255}, "vocab_size = 255"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps = 1e-06"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"head_dim": 4}, "head_dim = 4"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling = {'rope_type': 'llama3'}"),
        ({"eos_token_id": [258]}, r"eos_token_id = \[258\]"),
        ({"hidden_size": "wide"}, "damaged"),
        ({"hidden_size": 16.0}, r"model\.dim is 16\.0; it must be of type int"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\]"),
        ({"num_attention_heads": 5, "head_dim": None}, r"model\.attention_heads is 5"),
    ],
)
def test_a_folder_of_another_kind_says_what_it_is(exported: Path, values: dict[str, Any], found: str) -> None:
    rewrite(exported, **values)
    with pytest.raises(UserError, match=f"config.json.*{found}") as error:
        load_folder(exported)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = .'full_attention'"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types = .'chunked_attention'"),
        ({"layer_types": None, "max_window_layers": 1}, "max_window_layers = 1"),
        ({"architectures": ["LlamaForCausalLM"]}, r"k_norm.weight .*which its kind lacks"),
    ],
)
def test_a_qwen3_of_another_kind_says_what_it_is(tmp_path: Path, values: dict[str, Any], found: str) -> None:
    export(drawn(replace(MODEL, qk_norm=True)), tmp_path / "hf")
    rewrite(tmp_path / "hf", **values)
    with pytest.raises(UserError, match=found) as error:
        load_folder(tmp_path / "hf")
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_their_ids(exported: Path) -> None:
    path = exported / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {character: i + 3 for character, i in tokenizer["model"]["vocab"].items()}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer.json gives byte 0 the id 3, ours is 0"):
        load_folder(exported)
    path.unlink()
    with pytest.raises(UserError, match=r"tokenizer_config.json names a \w+, and without tokenizer.json"):
        load_folder(exported)  # so are ByT5's and Perceiver's, which write no other file
    (exported / "tokenizer_config.json").unlink()
    assert load_folder(exported)


def test_what_transformers_takes_for_granted(exported: Path) -> None:
    """As many heads of keys as of queries, and one file of weights before a list of parts."""
    expected = load_folder(exported)
    (exported / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    assert torch.equal(logits(load_folder(exported)), logits(expected))
    export(drawn(replace(MODEL, kv_heads=0)), exported.with_name("all"))
    rewrite(exported.with_name("all"), num_key_value_heads=None)
    assert load_folder(exported.with_name("all")).config.kv_heads == 0


@pytest.mark.parametrize("change", ["shape", "lack", "extra", "truncated", "missing"])
def test_weights_that_do_not_fit_are_named(exported: Path, change: str, spoil: Callable[..., None]) -> None:
    path = exported / "model.safetensors"
    spoil(path, change, "model.norm.weight", "model.layers.9.q_norm.weight")
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    if change == "missing":
        path.unlink()
    named = {"truncated": "model.safetensors is damaged", "missing": "model.safetensors does not exist"}
    with pytest.raises(UserError, match=named.get(change, r"norm\.weight")) as error:
        load_folder(exported)
    assert str(exported) in str(error.value) and "\n" not in str(error.value)


def read(*arguments: str) -> Settings:
    return read_command(["corpus", "--out", "run", *arguments]).settings


def test_the_command_line_takes_the_shape_from_the_source(tmp_path: Path, exported: Path) -> None:
    """All of it, so that only the heads need to be named; the preset gives the rest."""
    run = written_run(tmp_path / "source", drawn(MODEL), steps=(1, 2))
    assert read("--init", str(run)).model == MODEL
    assert read("--init", str(run)).train == read().train
    assert read("--init", str(run), "--model.n-future=8").model == replace(MODEL, n_future=8, layers=9)
    linear = read("--init", str(run / "checkpoints" / "latest"), "--model.topology", "linear").model
    assert linear == replace(MODEL, topology="linear", layers=2)
    from_folder = read("--init", str(exported), "--model.n-future=4").model
    assert from_folder == replace(MODEL, topology="replicated", n_future=4, layers=2)
    file = tmp_path / "settings.toml"
    file.write_text('[model]\ntopology = "causal"\nlayers = 7\n')
    assert read("--init", str(run), "--config", str(file)).model == replace(MODEL, topology="causal", layers=7)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dim", 32, "model.dim is 32 but .*step-00000001 has 16; leave it out"),
        ("kv_heads", 2, "model.kv_heads is 2 but .* has 1"),
        ("ffn_dim", 25, "model.ffn_dim is 25 but .* has 24"),
        ("rope_theta", 1e4, r"model.rope_theta is 10000\.0 but .* has 500\.0"),
        ("window", 0, "model.window is 0 but .* has 9"),
        ("qk_norm", True, "model.qk_norm is True but .* has False; leave it out"),
        ("layers", 5, "model.layers is 5, which gives head 1 3 layers, but .* has 2; leave it out, or make it 4"),
    ],
)
def test_contradictions(tmp_path: Path, corpus: str, name: str, value: Any, message: str) -> None:
    run = written_run(tmp_path / "source", drawn(MODEL))
    with pytest.raises(UserError, match=message):
        main([corpus, "--out", str(tmp_path / "run"), "--init", str(run), f"--model.{name}={value}", "--device=cpu"])
    assert not (tmp_path / "run").exists()


def test_sources_that_are_none(tmp_path: Path, corpus: str) -> None:
    for path in (tmp_path / "missing", Path(corpus)):
        with pytest.raises(UserError, match=f"cannot start from {path}: .*or a Hugging Face folder"):
            train(SETTINGS, [corpus], tmp_path / "run", init=path)
        with pytest.raises(UserError, match=f"cannot start from {path}: .*or a Hugging Face folder"):
            read("--init", str(path))
    run = written_run(tmp_path / "run", drawn(MODEL))
    with pytest.raises(UserError, match="choose another --out"):
        train(SETTINGS, [corpus], run, overwrite=True, init=run)
    with pytest.raises(UserError, match="--init and --resume exclude each other"):
        train(SETTINGS, [], run, resume=True, init=run)
    assert latest(run) is not None


def test_a_run_starts_from_another_and_remembers_it(tmp_path: Path, corpus: str) -> None:
    """With no step taken the weights are the source's; a run that a kill has left without checkpoint starts again."""
    source = drawn(MODEL)
    export(source, tmp_path / "hf")
    for i, init in enumerate((written_run(tmp_path / "source", source), tmp_path / "hf")):
        settings = changed(SETTINGS, **{"model.n_future": 2, "model.layers": 3})
        run = tmp_path / str(i)
        train(settings, [corpus], run, device="cpu", init=init, stop_after=1)
        saved = (latest(run) / "model.safetensors").read_bytes()  # type: ignore[operator]
        (run / "checkpoints" / "latest").unlink()
        train(settings, [], run, device="cpu", resume=True, stop_after=1)
        assert (latest(run) / "model.safetensors").read_bytes() == saved  # type: ignore[operator]
        assert Path(load_settings(run / "config.toml")[1]["init"]) in (init, latest(init))
        train(changed(settings, **{"train.steps": 0}), [corpus], tmp_path / f"{i}-0", device="cpu", init=init)
        assert torch.equal(logits(load_model(tmp_path / f"{i}-0")), logits(source))


def test_a_frozen_trunk_that_looked_elsewhere_is_told(
    tmp_path: Path, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the source is: a run, what it exports, or a Llama that looks back without limit."""
    source = drawn(replace(MODEL, window=0))
    source.trained_length = 16
    export(source, tmp_path / "slides")
    source.trained_length = 0
    export(source, tmp_path / "llama")
    for name, far in (("slides", "16 bytes back"), ("llama", "back without limit")):
        frozen = changed(SETTINGS, **{"model.window": 0, "model.layers": 4, "train.freeze": "trunk"})
        train(frozen, [corpus], tmp_path / "run", device="cpu", init=tmp_path / name, stop_after=1, overwrite=True)
        told = f"the source looks {far}, and frozen or not this run will look {SETTINGS.train.seq_len}"
        assert told in capsys.readouterr().err


LEARNING = [topology for topology in TOPOLOGIES if topology != "anticausal"]


@pytest.mark.parametrize("mode", ["sequential", "joint"])
@pytest.mark.parametrize("topology", LEARNING)
def test_frozen_gradients_are_those_of_the_far_heads(topology: Topology, mode: Any) -> None:
    """The same numbers as without freezing, and none for what is frozen; z needs no gradient at all."""
    plain, frozen = (drawn(replace(MODEL, topology=topology)) for _ in range(2))
    freeze_path(frozen)
    document_ids = torch.zeros_like(IDS, dtype=torch.int32)
    z = frozen.run_trunk(frozen.context(IDS, 32))
    assert not z.requires_grad
    losses = [backward(model, IDS, document_ids, mode=mode).nats for model in (plain, frozen)]
    assert torch.equal(*losses)
    learning = [name for name, parameter in frozen.named_parameters() if parameter.grad is not None]
    assert learning and all(name.startswith(("links.1", "links.2", "unembed.1", "unembed.2")) for name in learning)
    for name, parameter in frozen.named_parameters():
        assert (name in learning) == parameter.requires_grad
        if name in learning:
            assert torch.equal(parameter.grad, plain.get_parameter(name).grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", LEARNING)
def test_heads_are_added_to_a_frozen_trunk(tmp_path: Path, corpus: str, topology: Topology) -> None:
    """Head 1 stays to the bit, the others learn; cut and resumed it is the same run."""
    source = drawn(replace(MODEL, n_future=1))
    init = written_run(tmp_path / "source", source)
    arguments = [
        corpus, "--init", str(init), "--train.freeze=trunk", "--model.n_future=3", f"--model.topology={topology}",
        "--model.parity=false", "--train.steps=30", "--train.warmup=2", "--train.batch_size=4", "--train.seq_len=32",
        "--train.lr=0.02", "--train.dtype=float32", "--train.sample_bytes=0", "--train.valid_every=15",
        "--train.log_every=5", "--data.valid_fraction=0.2", "--device=cpu",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main([*arguments, "--out", str(whole)])
    model = load_model(whole)
    assert torch.equal(logits(model), logits(source))
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["bpb_per_head"] for line in lines if line["split"] == "train" and line["step"] in (5, 30))
    assert last[1] < first[1] and last[2] < first[2]

    main([*arguments, "--out", str(cut), "--stop-after=17"])
    main(["--out", str(cut), "--resume", "--device=cpu", "--train.far-rows=0.5"])  # means nothing here
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(latest(run) / name) for run in (whole, cut))  # type: ignore[operator]
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    state = json.loads((latest(whole) / "state.json").read_text())  # type: ignore[operator]
    accepted = {line["step"]: sum(line["accepted_per_head"][1:]) for line in lines if line["split"] == "valid"}
    assert state["best_step"] == max(accepted, key=accepted.__getitem__), "head 1 never changes, so its drafts decide"


def test_tables_are_added_to_the_heads_of_a_run(tmp_path: Path, corpus: str) -> None:
    """They begin at zero, so the heads begin as they were; head 1 stays to the bit; cut and resumed the same run."""
    source = drawn(replace(MODEL, topology="replicated"))
    init, run, cut = written_run(tmp_path / "source", source), tmp_path / "run", tmp_path / "cut"
    arguments = [
        corpus, "--init", str(init), "--train.freeze=trunk", "--model.transitions=true", "--train.steps=12",
        "--train.warmup=2", "--train.batch_size=4", "--train.seq_len=32", "--train.lr=0.01", "--train.dtype=float32",
        "--train.sample_bytes=0", "--train.valid_every=6", "--data.valid_fraction=0.2", "--device=cpu",
    ]  # fmt: skip
    main([*arguments, "--out", str(tmp_path / "begun"), "--train.steps=0"])
    begun = load_model(tmp_path / "begun")
    assert begun.transitions is not None and not begun.transitions.any()
    assert all(torch.equal(logits(begun, head), logits(source, head)) for head in range(3))

    main([*arguments, "--out", str(run)])
    model = load_model(run)
    assert load_settings(run / "config.toml")[0].model.transitions and model.transitions.any()
    before = source.state_dict()
    for name, tensor in model.state_dict().items():
        own = name.startswith(("transitions", "unembed.1", "unembed.2"))
        assert own or torch.equal(tensor, before[name]), name

    main([*arguments, "--out", str(cut), "--stop-after=7"])
    main(["--out", str(cut), "--resume", "--device=cpu"])
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(latest(folder) / name) for folder in (run, cut))  # type: ignore[operator]
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert "transitions/exp_avg" in one
    assert "transitions dropped: heads 2 to 3" in take(source, model)


@pytest.mark.parametrize(("topology", "n"), [("anticausal", 2), ("parallel", 1), ("replicated", 1)])
def test_freezing_all_there_is(tmp_path: Path, corpus: str, topology: Topology, n: int) -> None:
    init = written_run(tmp_path / "source", drawn(MODEL))
    model = with_path_of(replace(MODEL, topology=topology, n_future=n), MODEL)
    settings = Settings(model, replace(TRAIN, freeze="trunk"))
    with pytest.raises(UserError, match=f"n_future {n} and {topology} heads nothing is left to train"):
        train(settings, [corpus], tmp_path / "run", device="cpu", init=init)
    with pytest.raises(UserError, match="name trained weights with --init"):
        train(settings, [corpus], tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
