"""Wrong arguments of the public functions: one line that names the value and what is allowed, before anything runs."""

import numpy as np
import pytest
import torch

import bytemtp
from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig
from bytemtp.model.model import ByteMTP

MODEL = ByteMTP(ModelConfig(dim=16, layers=4, attention_heads=2, ffn_dim=24, n_future=3)).eval()
NAN, INF = float("nan"), float("inf")

WRONG = [
    ("mode", "AR", "mode is 'AR'; choose from auto, ar, speculative, tree, draft, copy"),
    ("mode", None, "mode is None; choose from"),
    ("mode", ["ar"], r"mode is \['ar'\]; choose from"),
    ("engine", "nope", "engine is 'nope'; choose from auto, native, torch, recorded"),
    ("engine", 1, "engine is 1; choose from"),
    ("max_bytes", -1, "max_bytes is -1; it must be 0 or more"),
    ("max_bytes", 3.0, "max_bytes is 3.0, of type float; it must be a whole number"),
    ("max_bytes", "3", "max_bytes is '3', of type str; it must be a whole number"),
    ("max_bytes", True, "max_bytes is True, of type bool"),
    ("max_bytes", None, "max_bytes is None"),
    ("temperature", NAN, "temperature is nan"),
    ("temperature", INF, "temperature is inf"),
    ("temperature", 10**400, "temperature is inf"),
    ("temperature", -0.1, r"temperature is -0.1; it must be 0 \(greedy\) or more"),
    ("temperature", "1", "temperature is '1', of type str; it must be a number"),
    ("temperature", None, "temperature is None, of type NoneType; it must be a number"),
    ("temperature", 1j, "temperature is 1j, of type complex"),
    ("top_p", 0, "top_p is 0.0; it must be above 0 and at most 1"),
    ("top_p", 1.01, "top_p is 1.01"),
    ("top_p", NAN, "top_p is nan"),
    ("top_p", [0.9], r"top_p is \[0.9\], of type list"),
    ("top_k", -1, "top_k is -1; it must be 0 or more"),
    ("top_k", 2.5, "top_k is 2.5, of type float; it must be a whole number"),
    ("top_k", None, "top_k is None"),
    ("heads", -1, "heads is -1; it must be 0 or more"),
    ("heads", 4, "heads is 4; it must be from 1 to 3, or 0 for all"),
    ("heads", "2", "heads is '2', of type str"),
    ("seed", "a", "seed is 'a', of type str; it must be a whole number"),
    ("seed", 1.5, "seed is 1.5, of type float"),
    ("seed", None, "seed is None"),
    ("stop", "abc", r"stop is 'abc', of type str; it must be a list of bytes, such as \[b'one'\]"),
    ("stop", b"abc", "stop is b'abc', of type bytes; it must be a list of bytes"),
    ("stop", None, "stop is None"),
    ("stop", 3, "stop is 3"),
    ("stop", ["abc"], r"stop\[0\] is 'abc', of type str; it must be bytes, such as text.encode\(\)"),
    ("stop", [b"a", 98], r"stop\[1\] is 98, of type int; it must be bytes"),
    ("stop", [b"a", b""], "a stop string is empty; leave it out"),
    ("utf8", 1, "utf8 is 1, of type int; it must be True or False"),
    ("utf8", "no", "utf8 is 'no'"),
    ("tree", "abc", r"the tree is 'abc', no list of paths of ranks like \[\[0\], \[0, 0\], \[1\]\]"),
    ("tree", [0, 1], r"the tree is \[0, 1\], no list of paths"),
    ("tree", [["0"]], r"the tree is \[\['0'\]\], no list of paths"),
    ("tree", 3, "the tree is 3, no list"),
    ("tree", [[0]], "a tree is for the mode 'tree', but the mode is 'ar'"),
    ("draft", "runs/x", r"draft is 'runs/x', of type str; it must be a model, as bytemtp.load\(RUN\) gives it"),
    ("draft", MODEL, "mode 'draft' needs a draft model, and no other mode takes one"),
    ("temprature", 1.0, r"unknown argument 'temprature' of generate\w*\(\); did you mean 'temperature'\?"),
    ("quality", 1.0, r"unknown argument 'quality' of generate\w*\(\); choose from .*temperature"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_argument_is_told_in_one_line(name, value, message):
    """By all three functions; also by the one that gives bytes on the way, when it is called."""
    arguments = {"max_bytes": 3, name: value}
    calls = {
        bytemtp.generate: dict(model=MODEL, prompt=b"a"),
        bytemtp.generate_batch: dict(model=MODEL, prompts=[b"a", b"b"]),
        bytemtp.generate_stream: dict(model=MODEL, prompt=b"a"),
    }
    for function, rest in calls.items():
        with pytest.raises(UserError, match="^" + message) as error:
            function(**rest, **arguments)
        assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("function", "model", "prompt", "message"),
    [
        (bytemtp.generate, MODEL, "a", r"prompt is 'a', of type str; it must be bytes, such as text.encode\(\)"),
        (bytemtp.generate_stream, MODEL, "a", "prompt is 'a', of type str"),
        (bytemtp.generate, MODEL, None, "prompt is None, of type NoneType; it must be bytes$"),
        (bytemtp.generate, MODEL, [97, 98], r"prompt is \[97, 98\], of type list"),
        (bytemtp.generate, MODEL, torch.zeros(3, 3), r"prompt is tensor\(\[\[0., 0., 0.\], \[0"),
        (bytemtp.generate, MODEL, "long " * 99, r"prompt is 'long long .*l\.\.\., of type str"),
        (bytemtp.generate_batch, MODEL, b"ab", r"prompts is b'ab', of type bytes; it must be a list of bytes"),
        (bytemtp.generate_batch, MODEL, "ab", "prompts is 'ab'"),
        (bytemtp.generate_batch, MODEL, [b"a", "b"], r"prompts\[1\] is 'b', of type str"),
        (bytemtp.generate, "runs/demo", b"a", "model is 'runs/demo', of type str; it must be a model, as bytemtp.load"),
        (bytemtp.generate_batch, None, [b"a"], "model is None"),
    ],
)
def test_a_wrong_prompt_or_model(function, model, prompt, message):
    with pytest.raises(UserError, match="^" + message) as error:
        function(model, prompt, 3)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_what_is_as_good_is_taken():
    """Numbers of numpy, and bytes that can be written to; `generate_batch` of nothing is nothing."""
    plain = bytemtp.generate(MODEL, b"ab", 5, temperature=1.0, top_k=3, seed=7).data
    with_numpy = dict(temperature=np.float64(1.0), top_k=np.int64(3), seed=np.int64(7))
    assert bytemtp.generate(MODEL, bytearray(b"ab"), np.int32(5), **with_numpy).data == plain
    assert bytemtp.generate(MODEL, b"ab", 5, temperature=1, top_p=1, top_k=3, seed=7, stop=(b"\xff\xff",)).data == plain
    assert bytemtp.generate_batch(MODEL, [], 5) == []


def test_arguments_by_place_are_looked_at_too():
    with pytest.raises(UserError, match=r"^draft is 'speculative'"):
        bytemtp.generate(MODEL, b"a", 3, "speculative")
    with pytest.raises(TypeError, match="max_bytes"):
        bytemtp.generate(MODEL, b"a")
