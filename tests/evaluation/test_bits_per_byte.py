"""`python -m bytemtp.evaluate bpb`: every byte counts once, with the context that is promised."""

import json
import lzma
import math
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.common.settings import DataConfig, ModelConfig
from bytemtp.common.vocab import EOT
from bytemtp.evaluation import bits_per_byte as bpb
from bytemtp.evaluation.bits_per_byte import bits_per_byte, read_ids, windows
from bytemtp.model.checkpoint import load_model
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import evaluate as evaluate_rows

N = 3
DOCUMENTS = st.lists(st.binary(max_size=8), min_size=1, max_size=4).filter(any)


def tiny(topology: str = "parallel") -> ByteMTP:
    """Small enough to be run once per byte; its weights are large so that context changes what it predicts."""
    model = ByteMTP(ModelConfig(dim=8, layers=3, attention_heads=1, ffn_dim=8, n_future=N, topology=topology), seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


def write(folder: Path, documents: list[bytes]) -> Path:
    """One file a document, in order."""
    folder.mkdir()
    for i, document in enumerate(documents):
        (folder / f"{i:03}").write_bytes(document)
    return folder


@torch.no_grad()
def slow_bits(model: ByteMTP, documents: list[bytes], seq_len: int, stride: int) -> list[list[float]]:
    """Bits of each byte by head: one forward pass a byte, over the context that its window gives it."""
    ids = [EOT]
    for document in documents:
        ids += [*document, EOT]
    opens = [i for i, value in enumerate(ids) if value == EOT]
    bits: list[list[float]] = [[] for _ in range(N)]
    for p in range(len(ids) - 1):
        document = max(i for i in opens if i <= p)
        window = p // stride * stride - (seq_len - stride)
        begin = max(document, window, 0)
        ahead = ids[begin : p + N]  # deepseek heads read ahead
        logits = model(torch.tensor([ahead]))[:, 0, p - begin]
        for i in range(N):
            target = p + 1 + i
            if target < len(ids) and EOT not in ids[p + 1 : target + 1]:
                bits[i].append(-float(logits[i].log_softmax(0)[ids[target]]) / math.log(2))
    return bits


@pytest.mark.parametrize("topology", ["parallel", "deepseek"])
@given(documents=DOCUMENTS, seq_len=st.integers(1, 16), data=st.data())
def test_equals_one_forward_pass_a_byte(tmp_path_factory, topology, documents, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    model = tiny(topology)
    folder = write(tmp_path_factory.mktemp("bpb") / "corpus", documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpb, "COMPRESSORS", {})  # each takes a moment to start
        score = bits_per_byte(model, [str(folder)], seq_len=seq_len, stride=stride)
    expected = slow_bits(model, documents, seq_len, stride)
    assert score.losses.byte_counts.tolist() == [len(bits) for bits in expected]
    assert score.byte_count == sum(map(len, documents))
    assert score.losses.end_counts[0] == len(documents)
    for ours, bits in zip(score.as_dict()["bpb_per_head"], expected, strict=True):
        assert ours is None if not bits else ours == pytest.approx(sum(bits) / len(bits), rel=1e-4)


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.unembed[0].weight.zero_()
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 3)
    record = bits_per_byte(model, [str(path)], seq_len=100, stride=50).as_dict()
    assert record["bytes"] == 768 and record["documents"] == 1
    assert record["bpb_per_head"] == [pytest.approx(math.log2(257))] * N
    assert record["bits_per_document_end"] == pytest.approx(math.log2(257))


def test_validation_in_training_counts_alike(tmp_path):
    """Bytes cost little here and ends of documents much: neither figure of one is that of the other."""
    model = tiny()
    with torch.no_grad():
        model.norm.weight.zero_()  # all logits are the bias
    model.padding[EOT] = -20.0
    documents = [b"rose", b"a", b"is a rose"]
    record = bits_per_byte(model, [str(write(tmp_path / "corpus", documents))], seq_len=40, stride=40).as_dict()
    ids = torch.tensor([[EOT, *b"rose", EOT, *b"a", EOT, *b"is a rose", EOT, *[EOT] * N]])
    document_ids = (ids == EOT).cumsum(1)
    document_ids[0, -N:] = -1
    validated = evaluate_rows(model, ids, document_ids)
    assert record["bpb"] == pytest.approx(8, abs=1e-6)
    assert record["bpb"] == pytest.approx(validated.bits_per_byte[0], rel=1e-6)
    assert record["bits_per_document_end"] == pytest.approx(validated.bits_per_end[0], rel=1e-6)
    assert record["bpb_with_ends"] == pytest.approx(validated.bits_per_target[0], rel=1e-6)
    assert record["accepted_per_head"][0] is None
    assert record["accepted_per_head"][1:] == pytest.approx(validated.acceptance[1:], rel=1e-6)
    assert record["bpb_with_ends"] == pytest.approx((14 * 8 + 3 * record["bits_per_document_end"]) / 17)


def test_the_arithmetic_is_float32_unless_told(trained_run, tmp_path, monkeypatch):
    """A number that is published must not depend on whether the processor has bfloat16."""
    (tmp_path / "file").write_bytes(b"a rose is a rose\n" * 40)
    found = {}
    for has in (False, True):
        capabilities = {"avx512_bf16": has, "amx_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        for more in ([], *(["--dtype", dtype] for dtype in ("float32", "bfloat16", "int8"))):
            out = ["--json", str(tmp_path / "out.json"), "--device", "cpu", *more]
            evaluate.main(["bpb", str(trained_run), str(tmp_path / "file"), *out])
            record = json.loads((tmp_path / "out.json").read_text())
            found.setdefault(record["dtype"], set()).add(record["bpb"])
    assert found.keys() == {"float32", "bfloat16", "int8"}
    assert all(len(values) == 1 for values in found.values()) and len(set.union(*found.values())) == 3
    model = load_model(trained_run)
    model.use()
    expected = bits_per_byte(model, [str(tmp_path / "file")], seq_len=32, stride=16).as_dict()["bpb"]
    assert found["float32"] == {expected}


def test_a_model_without_a_score_is_one_line(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="the loss of the model is nan: its weights are damaged"):
        bits_per_byte(model, [str(write(tmp_path / "corpus", [b"rose"]))], seq_len=8, stride=8)


def test_compressors_get_the_documents_joined(tmp_path):
    documents = [b"to be or not to be " * 50, b"", b"that is the question " * 40]
    score = bits_per_byte(tiny(), [str(write(tmp_path / "corpus", documents))], seq_len=64, stride=64)
    joined = b"".join(documents)
    sizes = {"xz-9": len(lzma.compress(joined, preset=9))}
    assert score.compressed["xz-9"] == sizes["xz-9"]
    assert score.as_dict()["xz-9"] == 8 * sizes["xz-9"] / len(joined)
    # A one-shot zstd frame also says how long its content is; the stream cannot know that beforehand.
    assert abs(score.compressed["zstd-19"] - len(zstandard.compress(joined, 19))) <= 8


@given(documents=DOCUMENTS, chunk=st.integers(1, 9))
def test_the_id_stream_is_whole_whatever_the_chunks(tmp_path_factory, documents, chunk):
    folder = write(tmp_path_factory.mktemp("ids") / "corpus", documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpb, "CHUNK_IDS", chunk)
        ids = torch.cat(list(read_ids([str(folder)], DataConfig()))).tolist()
    assert ids == [value for document in documents for value in (*document, EOT)]


@given(count=st.integers(1, 40), seq_len=st.integers(1, 9), n=st.integers(1, 4), data=st.data())
def test_windows_score_each_input_once(count, seq_len, n, data):
    stride = data.draw(st.integers(1, seq_len))
    rows = list(windows(iter([torch.arange(count)]), seq_len, stride, n))
    assert all(len(row) == seq_len + n for row in rows)
    inputs = [int(value) for row in rows for value in row[seq_len - stride : seq_len]]
    led = [EOT, *range(count)]
    assert inputs[: count + 1] == led[: len(inputs)]
    assert set(inputs[count + 1 :]) <= {bpb.PADDING}
    assert len(inputs) >= count  # every id but the last has a target


def test_command_prints_and_writes_the_same_numbers(trained_run, tmp_path, capsys):
    text = b"a rose is a rose\n" * 40
    (tmp_path / "plain").write_bytes(text)
    packed = tmp_path / "packed.tar.zst"
    with zstandard.open(packed, "wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add(tmp_path / "plain", "plain")
    results = []
    for path in (tmp_path / "plain", packed):
        evaluate.main(["bpb", str(trained_run), str(path), "--json", str(tmp_path / "out.json"), "--device", "cpu"])
        results.append(json.loads((tmp_path / "out.json").read_text()))
    assert results[0] == results[1], "what is scored are the decompressed bytes"
    assert results[0]["bytes"] == len(text)
    assert results[0]["bpb"] == results[0]["bpb_per_head"][0]
    assert results[0].keys() >= {"bytes", "bpb", "bpb_per_head", "zstd-19", "xz-9"}
    printed = capsys.readouterr().out
    accepted = " ".join(f"{share:.3f}" for share in results[0]["accepted_per_head"][1:])
    assert f"accepted       - {accepted}, of drafts at temperature 1" in printed
    assert f"{results[0]['bpb']:.4f}" in printed and f"{results[0]['zstd-19']:.4f}" in printed


def test_windows_of_other_lengths_are_scored_alike(trained_run, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"a rose is a rose\n" * 40)
    common = ["bpb", str(trained_run), str(tmp_path / "file"), "--device", "cpu", "--json", str(tmp_path / "out.json")]
    evaluate.main([*common, "--contexts", "8", "32"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["bpb_by_context"].keys() == {"8", "32"}
    assert found["bpb_by_context"]["32"] == found["bpb"], "the run's rows have 32 bytes"
    model = load_model(trained_run)
    model.use()
    short = bits_per_byte(model, [str(tmp_path / "file")], seq_len=8, stride=4)
    assert found["bpb_by_context"]["8"] == short.as_dict()["bpb"] != found["bpb"]
    assert f"context 8      {found['bpb_by_context']['8']:.4f}" in capsys.readouterr().out
    for bad, message in ((["0"], "each must be at least 1"), (["8"], "standard input can be read only once")):
        with pytest.raises(UserError, match=message):
            evaluate.main(["bpb", str(trained_run), "-", "--contexts", *bad])


def test_a_step_folder_is_as_good_as_its_run(trained_run, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"rose")
    outputs = []
    for run in (trained_run, trained_run / "checkpoints" / "step-00000002"):
        evaluate.main(["bpb", str(run), str(tmp_path / "file"), "--device", "cpu"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bpp"], "did you mean 'bpb'"),
        (["bpb"], "RUN"),
        (["bpb", "RUN"], "PATH"),
        (["bpb", "RUN", "missing"], "missing: no such file"),
        (["bpb", "RUN", "FILE", "--stride", "0"], "stride is 0"),
        (["bpb", "RUN", "FILE", "--stride", "33"], "from 1 to the window's length, 32"),
        (["bpb", "RUN", "EMPTY"], "is empty"),
        (["bpb", "RUN", "FILE", "--jsno", "x"], "did you mean '--json'"),
        (["bpb", "FILE", "FILE"], "is not a run"),
        (["bpb", "RUN", "FILE", "--json", "/no/such/place"], "cannot write /no/such/place: No such file or directory"),
    ],
)
def test_bad_input_is_one_clear_line(trained_run, tmp_path, arguments, message):
    (tmp_path / "file").write_bytes(b"rose")
    (tmp_path / "empty").touch()
    stand_for = {"RUN": trained_run, "FILE": tmp_path / "file", "EMPTY": tmp_path / "empty"}
    with pytest.raises(UserError) as caught:
        evaluate.main([str(stand_for.get(word, word)) for word in arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_of_json_may_name_their_text_otherwise(trained_run, tmp_path, capsys):
    for field in ("text", "code"):
        (tmp_path / f"{field}.jsonl").write_text(json.dumps({field: "a rose is a rose"}) + "\n")
    evaluate.main(["bpb", str(trained_run), str(tmp_path / "text.jsonl")])
    expected = capsys.readouterr().out
    evaluate.main(["bpb", str(trained_run), str(tmp_path / "code.jsonl"), "--text-field", "code"])
    assert capsys.readouterr().out == expected


def test_exit_codes_and_streams(trained_run, tmp_path):
    """From outside: results on standard output, complaints on standard error, no traceback."""
    (tmp_path / "file").write_bytes(b"rose")
    program = [sys.executable, "-m", "bytemtp.evaluate", "bpb", str(trained_run)]
    good = subprocess.run([*program, str(tmp_path / "file"), "--device", "cpu"], capture_output=True, text=True)
    assert good.returncode == 0 and good.stdout.startswith("bytes")
    bad = subprocess.run([*program, str(tmp_path / "none"), "--device", "cpu"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in bad.stderr


def test_help_shows_every_verb_and_an_example(capsys):
    evaluate.main(["--help"])
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in evaluate.VERBS)
    assert "python -m bytemtp.evaluate bpb runs/demo" in printed
    for verb in evaluate.VERBS:
        with pytest.raises(SystemExit, match="0"):
            evaluate.main([verb, "--help"])
        assert f"python -m bytemtp.evaluate {verb} " in capsys.readouterr().out
