"""Where two texts part: the place, the float64 lead there, and what bfloat16 does to greedy decoding."""

import copy

import numpy as np
import pytest
import torch

from bytemtp.common.settings import ModelConfig
from bytemtp.common.vocab import EOT
from bytemtp.decoding.divergence import Divergence, divergence
from bytemtp.decoding.generate import Generation, generate_batch
from bytemtp.decoding.utf8 import legal, state_after
from bytemtp.generate.__main__ import comparison
from bytemtp.model.model import ByteMTP
from bytemtp.reports.page import page

PROMPT = b"def "


@pytest.fixture(scope="module")
def model():
    """Heads that nearly agree on some favourite bytes, so that drafts are sometimes right."""
    model = ByteMTP(ModelConfig(dim=32, layers=4, attention_heads=2, ffn_dim=48, topology="replicated", n_future=4))
    with torch.no_grad():
        for unembed in model.unembed:
            unembed.weight.copy_(model.unembed[0].weight)
            unembed.weight[100:] *= 0.3
    return model.eval()


def in_float64(model: ByteMTP) -> ByteMTP:
    wide = copy.deepcopy(model).double()
    wide.use(attention="sdpa")
    return wide


def written(data: bytes, stopped_by: str = "max_bytes") -> Generation:
    stats = {"mode": "ar", "bytes_per_s": 2.0, "bytes_per_forward": 1.0, "stopped_by": stopped_by}
    return Generation(data, stats, [0] * len(data))


def lead_after(model: ByteMTP, data: bytes, allowed: np.ndarray | None = None) -> float:
    """By a full pass of the float64 model."""
    with torch.inference_mode():
        logits = in_float64(model)(torch.tensor([[EOT, *PROMPT, *data]]))[0, 0, -1]
    if allowed is not None:
        logits = logits[torch.from_numpy(allowed)]
    best, second = logits.topk(2).values.tolist()
    return best - second


def test_the_same_text_has_no_divergence(model):
    assert divergence(model, PROMPT, written(b"abc"), written(b"abc", "endoftext")) is None


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [(b"abXc", b"abYc", 2), (b"X", b"Y", 0), (b"ab", b"abc", 2), (b"", b"a", 0), (b"abcd", b"abc\xff", 3)],
)
def test_planted_texts_part_where_they_were_planted(model, one, other, place):
    for a, b in ((one, other), (other, one)):
        found = divergence(model, PROMPT, written(a), written(b))
        assert found is not None and found.place == place
        assert found.lead == pytest.approx(lead_after(model, one[:place]), rel=1e-9)


def test_a_stop_string_that_was_cut_off_is_part_of_what_was_decoded(model):
    """`abSTOP` ended at STOP; the other went on after `abST`: the choice was at byte 4, not where the output ends."""
    one, other = written(b"ab", "stop"), written(b"abSTx")
    for stop in ([b"STOP"], [b"zz", b"STOP"]):
        found = divergence(model, PROMPT, one, other, stop=stop)
        assert (found.place, found.lead) == (4, pytest.approx(lead_after(model, b"abST"), rel=1e-9))


def test_only_allowed_bytes_count_in_utf8(model):
    found = divergence(model, PROMPT, written("aé".encode()), written("aè".encode()), utf8=True)
    allowed = legal(state_after(PROMPT + b"a\xc3"))
    assert (found.place, found.lead) == (2, pytest.approx(lead_after(model, b"a\xc3", allowed), rel=1e-9))
    assert found.lead != pytest.approx(lead_after(model, b"a\xc3"))


def test_command_and_page_say_the_same():
    plain, fast, found = written(b"abc"), written(b"abd"), Divergence(2, 0.00123456)
    detail = "first difference at byte 2; the two best bytes there differ by 0.00123 in float64 logits"
    assert comparison(plain, fast, found, greedy=True).splitlines()[-1] == f"identical: no, {detail}"
    assert f"Identical: <strong>no</strong>, {detail}." in page(b"", fast, plain=plain, difference=found)
    assert comparison(plain, plain, None, greedy=True).splitlines()[-1] == "identical: yes"
    assert "identical" not in comparison(plain, fast, None, greedy=False)


def test_bfloat16_parts_only_where_it_cannot_tell(model):
    """By tensor operations.  At each difference the float64 lead is below twice the largest error of a bfloat16 logit.

    Each of two passes that prefer different bytes a and b has an error of at most E in each logit.  One of them missed
    the best byte by preferring, say, a: then a is at most 2 E behind, and so is the second best.
    """
    random = np.random.default_rng(0)
    prompts = [random.bytes(int(random.integers(1, 20))) for _ in range(40)]
    model.use(dtype=torch.bfloat16)
    try:
        plain = generate_batch(model, prompts, 40, mode="ar", engine="torch")
        found = []
        for mode in ("speculative", "tree"):
            fast = generate_batch(model, prompts, 40, mode=mode, engine="torch")
            found += [divergence(model, *texts) for texts in zip(prompts, plain, fast, strict=True)]
        error = largest_error(model, [prompt + out.data for prompt, out in zip(prompts, plain, strict=True)])
    finally:
        model.use(dtype=torch.float32)
    leads = [one.lead for one in found if one is not None]
    assert leads, "bfloat16 rounds differently in passes of different lengths: some texts must part"
    assert max(leads) <= 2 * error < 0.5


def test_in_the_native_engine_bfloat16_does_not_part(model):
    """The same texts: there, no bit of a logit depends on the pass that it was computed in."""
    random = np.random.default_rng(0)
    prompts = [random.bytes(int(random.integers(1, 20))) for _ in range(10)]
    model.use(dtype=torch.bfloat16)
    try:
        runs = [generate_batch(model, prompts, 40, mode=mode) for mode in ("ar", "speculative", "tree")]
    finally:
        model.use(dtype=torch.float32)
    assert {out.stats["engine"] for run in runs for out in run} == {"native"}
    assert any(out.stats["bytes_per_forward"] > 1.1 for out in runs[1]), "some drafts are right"
    for fast in runs[1:]:
        assert [out.data for out in fast] == [out.data for out in runs[0]]


def largest_error(model: ByteMTP, texts: list[bytes]) -> float:
    with torch.inference_mode():
        rows = [torch.tensor([[EOT, *text]]) for text in texts]
        pairs = [(model(row)[0, :, :, :257].double(), in_float64(model)(row)[0, :, :, :257]) for row in rows]
    return max(float((narrow - wide).abs().max()) for narrow, wide in pairs)
