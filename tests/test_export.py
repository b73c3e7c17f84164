"""Export: transformers computes, tokenizes and generates from the folder what we do from the run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bytemtp
from bytemtp import export
from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.model.model import ByteMTP

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

TOPOLOGIES = get_args(Topology)
TINY = ModelConfig(dim=32, layers=5, attention_heads=4, kv_heads=2, ffn_dim=48, n_future=3)


def tiny(topology="parallel", **changes) -> ByteMTP:
    """With norms that are not one, so that one left out or exchanged shows."""
    model = ByteMTP(replace(TINY, topology=topology, **changes), seed=1).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(sum(name.encode())))
    return model


def exported(model: ByteMTP, folder: Path, **options):
    """The model as transformers loads it from the exported folder."""
    export.export(model, folder / "out")
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "out", **options).eval()


@pytest.fixture(scope="module", params=[0, 32], ids=["Llama", "Mistral"])
def tokenizer(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("tokenizer") / "out"
    export.export(trained_on(request.param), folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def trained_on(length: int, **changes) -> ByteMTP:
    """As a run with that train.seq_len is loaded."""
    model = tiny(**changes)
    model.trained_length = length
    return model


VARIANTS = [
    *({"topology": topology} for topology in TOPOLOGIES),
    {"kv_heads": 1},
    {"kv_heads": 0},
    {"window": 5},
    {"rope_theta": 500.0},
    {"qk_norm": True},
    {"qk_norm": True, "window": 5, "topology": "anticausal"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_logits_are_ours(tmp_path, changes, dtype, tolerance):
    """transformers rounds norms and rotations to float32, also in a float64 model."""
    model = tiny(**changes).to(dtype)
    llama = exported(model, tmp_path, dtype="auto")
    assert llama.dtype == dtype, "the folder says in which dtype it is"
    ids = torch.randint(0, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(llama(ids).logits, model(ids)[0, ..., :VOCAB_SIZE], atol=tolerance, rtol=0)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_greedy_generation_is_ours_byte_for_byte(tmp_path, changes):
    model = tiny(**changes)
    llama = exported(model, tmp_path)
    for prompt in (b"", b"The rose", b"\xff\x00"):
        ids = torch.tensor([[EOT, *prompt]])
        theirs = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
        theirs = theirs[0, ids.shape[1] :].tolist()
        ours = bytemtp.generate(model, prompt, 30, mode="speculative")
        assert [*ours.data, EOT][: len(theirs)] == theirs
        assert len(theirs) >= len(ours.data)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(("length", "window"), [(12, 0), (12, 5), (5, 12), (0, 5)])
def test_beyond_the_trained_length_the_law_is_that_of_decoding(tmp_path, length, window, qk_norm):
    """Which looks back no further than train.seq_len; a Llama looks back to the start, and wrote other bytes."""
    model = trained_on(length, window=window, qk_norm=qk_norm)
    llama = exported(model, tmp_path)
    ids = torch.tensor([[EOT, *b"The rose is red, the violet is blue"]])
    theirs = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    ours = bytemtp.generate(model, bytes(ids[0, 1:].tolist()), 60).data
    assert [*ours, EOT][:60] == theirs[0, ids.shape[1] :].tolist()
    with torch.no_grad():
        hidden = model.first_hidden(ids, model.reach)
        torch.testing.assert_close(llama(ids).logits, model.logits(0, hidden)[..., :VOCAB_SIZE], atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [0, 12])
def test_servers_are_told_no_limit_of_length(tmp_path, length):
    """max_position_embeddings was train.seq_len: servers refused what is longer, though the law goes on."""
    folder = written(trained_on(length), tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.max_position_embeddings == 32768
    assert transformers.AutoTokenizer.from_pretrained(folder).model_max_length == 32768
    assert getattr(config, "sliding_window", None) == (length or None)


def test_a_window_may_be_longer_than_that(tmp_path):
    folder = written(trained_on(100_000), tmp_path)
    assert transformers.AutoConfig.from_pretrained(folder).max_position_embeddings == 100_000
    assert transformers.AutoTokenizer.from_pretrained(folder).model_max_length == 100_000


def test_a_pipeline_continues_a_document_from_its_start(tmp_path):
    """The tokenizer puts id 256 in front, as our decoding does, so a pipeline writes our bytes."""
    folder = written(trained_on(32), tmp_path)
    pipeline = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    [out] = pipeline("The rose", max_new_tokens=20, do_sample=False, return_full_text=False)
    ours = bytemtp.generate(trained_on(32), b"The rose", 20)
    assert out["generated_text"] == ours.data.decode("utf-8", "replace")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_folder_needs_no_code_and_no_tensor_is_left_over(tmp_path, qk_norm):
    _, report = transformers.AutoModelForCausalLM.from_pretrained(
        written(tiny("anticausal", qk_norm=qk_norm), tmp_path), output_loading_info=True, trust_remote_code=False
    )
    assert not any(report.values()), report
    assert not list((tmp_path / "out").glob("*.py"))


def written(model: ByteMTP, folder: Path) -> Path:
    export.export(model, folder / "out")
    return folder / "out"


def test_both_generations_of_transformers_find_their_names(tmp_path):
    config = json.loads((written(tiny(rope_theta=500.0), tmp_path) / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")


@pytest.mark.parametrize("length", [0, 32])
def test_norms_of_queries_and_keys_make_it_a_qwen3(tmp_path, length):
    model = trained_on(length, qk_norm=True)
    config = json.loads((written(model, tmp_path) / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")
    kinds = transformers.AutoConfig.from_pretrained(tmp_path / "out").layer_types
    assert set(kinds) == {"sliding_attention" if length else "full_attention"} and len(kinds) == 3
    del config["layer_types"]  # which older versions of transformers tell from the other keys
    assert transformers.Qwen3Config(**config).layer_types == kinds


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_becomes_its_bytes_and_comes_back(tokenizer, text):
    assert tokenizer.encode(text) == [EOT, *text.encode()]
    assert tokenizer.encode(text, add_special_tokens=False) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@given(data=st.binary())
def test_ids_are_bytes_whatever_they_are(tokenizer, data):
    """Broken UTF-8 decodes as Python replaces it, and spoils no valid neighbour."""
    assert tokenizer.decode(list(data)) == data.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "text", ["<|endoftext|>", "a<|endoftext|>b", " leading", "don't", "a  b\n\n", "e\u0301", "\r\n"]
)
def test_nothing_is_special_or_tidied_in_text(tokenizer, text):
    assert tokenizer.encode(text) == [EOT, *text.encode()]
    assert tokenizer.decode(list(text.encode())) == text


def test_the_document_boundary_is_the_only_special_id(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == EOT
    assert tokenizer.all_special_ids == [EOT]
    assert tokenizer.decode([97, EOT, 98]) == "a<|endoftext|>b"
    assert tokenizer.decode([97, EOT, 98], skip_special_tokens=True) == "ab"
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}, "what generate() takes"
    assert tokenizer("ab", "c")["input_ids"] == [EOT, *b"abc"]
    assert tokenizer(["ab", ""])["input_ids"] == [[EOT, *b"ab"], [EOT]]


def command(*arguments):
    program = [sys.executable, "-m", "bytemtp.export", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parent.parent)


def test_command_writes_and_checks(trained_run, tmp_path):
    done = command(trained_run, "--out", tmp_path / "out", "--check")
    assert done.returncode == 0, done.stderr
    assert "MistralForCausalLM, 2 layers" in done.stdout and "1000 of 1000 texts" in done.stdout


def test_the_card_tells_the_truth(trained_run, tmp_path):
    """Its lines of Python run as they stand."""
    model = bytemtp.load(trained_run)
    card = (written(model, tmp_path) / "README.md").read_text()
    lines = "\n".join(line.strip() for line in card.splitlines() if line.startswith("    "))
    assert "Trained on rows of 32 bytes" in card and "a byte sees the 32 positions up to itself" in card
    names = {"torch": torch}
    exec(lines.replace("DIR", str(tmp_path / "out")), names)
    text = bytes(i for i in names["ids"][0].tolist() if i != EOT).decode("utf-8", "replace")
    assert text.startswith("The ") and len(names["ids"][0]) > 5


def test_the_check_looks_beyond_the_window(tmp_path):
    model = trained_on(12)
    export.check(model, written(model, tmp_path))
    path = tmp_path / "out" / "config.json"
    path.write_text(path.read_text().replace('"sliding_window": 12', '"sliding_window": 13'))
    with pytest.raises(UserError, match="logits differ by at most"):
        export.check(model, tmp_path / "out")


def test_the_check_finds_a_wrong_folder(tmp_path):
    model, other = tiny(), tiny("anticausal")
    with pytest.raises(UserError, match="logits differ by at most"):
        export.check(other, written(model, tmp_path))
    path = tmp_path / "out" / "tokenizer.json"
    path.write_text(path.read_text().replace('"use_regex": false', '"use_regex": true').replace('"Ā": 0', '"Ā": 7'))
    with pytest.raises(UserError, match=r"\b\d{1,3} of 1000 texts come back"):
        export.check(model, tmp_path / "out")


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out exists and is no empty folder"):
        export.export(tiny(), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


def test_a_folder_stays_the_one_that_it_is(tmp_path):
    """It may be a mounted disk, or where a shell stands; what lies beside it is somebody else's."""
    out, beside = tmp_path / "out", tmp_path / "out.partial"
    out.mkdir()
    beside.mkdir()
    before = out.stat().st_ino
    export.export(tiny(), out)
    assert out.stat().st_ino == before and beside.is_dir()
    names = ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "tokenizer.json", "tokenizer_config.json"]


def test_an_unwritable_place_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        export.export(tiny(), tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_check_names_the_extra_before_anything_is_written(trained_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"bytemtp\[export\]"):
        export.main([str(trained_run), "--out", str(tmp_path / "out"), "--check"])
    assert not (tmp_path / "out").exists()
    export.main([str(trained_run), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.safetensors").exists(), "writing needs no transformers"
