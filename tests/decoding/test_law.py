"""The law of sampled texts, end to end: many texts of each mode against the law that full passes of the model give.

The expected numbers are exact, and seeds are fixed: what passes once, passes.
"""

import math
from collections import Counter
from dataclasses import fields, replace

import jaxtyping
import numpy as np
import pytest
import torch

from bytemtp.common.settings import ModelConfig
from bytemtp.common.vocab import EOT
from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.generate import generate_batch
from bytemtp.decoding.sampling import Rule
from bytemtp.decoding.utf8 import legal, state_after
from bytemtp.model.model import ByteMTP

TINY = ModelConfig(dim=16, layers=4, attention_heads=2, kv_heads=1, ffn_dim=24, n_future=3)
LENGTH, TEXTS, LEAST = 3, 2000, 8
"""LEAST: expected texts of a bin."""
MODES = {
    "ar": dict(mode="ar"),
    "speculative": dict(mode="speculative"),
    "tree": dict(mode="tree", tree=((0,), (1,), (2,), (0, 0), (0, 1), (1, 0))),
    "draft": dict(mode="draft", heads=3),
    "copy": dict(mode="copy"),
    "auto": dict(mode="auto"),
}
PROMPT, PAIRS = b"ab", b"aabacadbbcbdccdda"
"""PAIRS: of likely bytes, all of them, so that there is always something to copy."""
RULE = [field.name for field in fields(Rule)]
FAR = 4
"""Standard deviations of a normal variable: beyond is once in 30,000."""
FEW, WHOLE = {"temperature": 1.0, "top_k": 5}, {"temperature": 0.2}
CASES = [
    *(
        (topology, mode, FEW)
        for topology in ("parallel", "causal", "deepseek")
        for mode in ("ar", "speculative", "tree")
    ),
    *(("parallel", mode, WHOLE) for mode in ("ar", "speculative", "tree")),
    ("parallel", "draft", FEW),
    ("deepseek", "copy", FEW),
    *((topology, "auto", FEW) for topology in ("parallel", "deepseek")),
    ("replicated", "auto", {**FEW, "utf8": True}),
    ("anticausal", "tree", {**FEW, "engine": "native"}),
    ("parallel", "speculative", {**FEW, "top_p": 0.8}),
    ("parallel", "tree", {**FEW, "utf8": True}),
    *(("replicated+", mode, FEW) for mode in ("speculative", "tree")),
]
"""A + stands for transitions."""


@pytest.fixture(autouse=True)
def _costs(monkeypatch):
    """In place of those of this machine: some drafts pay."""
    table = Costs(tuple(1 + 0.1 * ids for ids in range(16)), heads=0.0)
    monkeypatch.setattr("bytemtp.decoding.generate.costs_of", lambda *_, **__: table)


@pytest.fixture(autouse=True)
def _unchecked():
    """Thousands of small calls, which the checks of shapes would make many times as slow."""
    jaxtyping.config.update("jaxtyping_disable", True)


def model_for(topology: str, seed: int = 0) -> ByteMTP:
    """A few bytes and the end carry most of the law, and the heads draft them, too."""
    config = replace(TINY, topology=topology.rstrip("+"), transitions=topology.endswith("+"))
    model = ByteMTP(config, seed).eval()
    with torch.no_grad():
        likely = [*b"abcd", 0xC3, 0xA9, 0xFF, EOT]
        if model.transitions is not None:
            shape, generator = (2, 264, len(likely)), torch.Generator().manual_seed(seed)
            model.transitions[..., likely] = torch.randn(shape, generator=generator)
        for unembed in model.unembed:
            unembed.weight *= 0.05
            unembed.weight[likely] *= 30
    return model


def likely_texts(model: ByteMTP, prompt: bytes, rule: Rule, utf8: bool) -> dict[bytes, float]:
    """Probability of each text that has a bin of its own: LENGTH bytes, or fewer where the end of the document came."""
    finished: dict[bytes, float] = {}
    begun: dict[bytes, float] = {b"": 1.0}
    for _ in range(LENGTH):
        with torch.no_grad():
            logits = model(torch.tensor([[EOT, *prompt, *text] for text in begun]))[0, :, -1].numpy()
        longer: dict[bytes, float] = {}
        for (text, p), row in zip(begun.items(), logits, strict=True):
            law = p * rule.distribution(row, legal(state_after(prompt + text)) if utf8 else None)
            finished[text] = law[EOT]
            longer |= {text + bytes([byte]): law[byte] for byte in range(256)}
        begun = {text: p for text, p in longer.items() if p * TEXTS >= LEAST}
    return {text: float(p) for text, p in (finished | begun).items() if p * TEXTS >= LEAST}


def deviation(counts: Counter[bytes], law: dict[bytes, float]) -> float:
    """Pearson's chi-square as deviations of a normal variable (Wilson & Hilferty 1931).  The rest is one bin."""
    bins = [(counts[text], p * TEXTS) for text, p in law.items()]
    rest = TEXTS * (1 - math.fsum(law.values()))
    bins += [(TEXTS - sum(count for count, _ in bins), rest)] * (rest >= 1)
    chi, freedom = sum((count - mean) ** 2 / mean for count, mean in bins), len(bins) - 1
    return ((chi / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize(("topology", "mode", "options"), CASES, ids=str)
def test_texts_have_the_law_of_the_model(topology, mode, options):
    model, how = model_for(topology), {"engine": "torch", **MODES[mode], **options}
    draft = model_for("parallel", seed=1) if mode == "draft" else None
    prompt = PAIRS if mode in ("copy", "auto") else PROMPT
    outs = generate_batch(model, [prompt] * TEXTS, LENGTH, draft, **how)
    rule = Rule(**{k: v for k, v in options.items() if k in RULE})
    law = likely_texts(model, prompt, rule, options.get("utf8", False))
    assert len(law) >= 4 and math.fsum(law.values()) > 0.5
    assert deviation(Counter(out.data for out in outs), law) < FAR
    if mode != "ar":
        share = np.mean([origin > 0 for out in outs for origin in out.origins])
        least = 0.04 if mode != "copy" else 0.005  # of 2,000 texts 30 bytes
        assert least < share < 0.5, "drafts are kept, and drafts are refused"
