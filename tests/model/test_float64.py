"""A float64 model computes in float64 everywhere: against a twin written plainly, to 1e-12."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from bytemtp.common.settings import ModelConfig, Topology
from bytemtp.common.vocab import EOT, VOCAB_SIZE
from bytemtp.decoding.judge import Float64Judge
from bytemtp.model.model import ByteMTP
from bytemtp.training.loss import IGNORED, backward, evaluate, targets_of

N, S = 3, 11
IDS = torch.randint(0, 256, (2, S + N), generator=torch.Generator().manual_seed(4))
IDS[0, 5] = IDS[1, 2] = EOT
DOCUMENT_IDS = (IDS == EOT).cumsum(1)


def model_for(topology: str, window: int, attention: str = "matmul", *, qk_norm: bool = False) -> ByteMTP:
    """Wide weights, so that nothing is near linear; norms that are not one."""
    shape = ModelConfig(
        dim=12, layers=5, attention_heads=2, kv_heads=1, ffn_dim=10, n_future=N, topology=topology, window=window,
        qk_norm=qk_norm,
    )  # type: ignore[arg-type]  # fmt: skip
    model = ByteMTP(shape, seed=2).double()
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(sum(name.encode()))
        torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator) if "norm" in name else parameter.data.mul_(2)
    model.use(attention=attention)
    return model


class Twin:
    """The formulas, one position and head at a time."""

    def __init__(self, model: ByteMTP) -> None:
        self.config, self.weights = model.config, model.state_dict()

    def logits(self, ids: Tensor, documents: Tensor) -> Tensor:
        """ids [s] -> [n, s, v]"""
        c = self.config
        x = self.weights["embed.weight"][ids]
        for layer in range(c.trunk_layers):
            x = self.block(f"trunk.{layer}.", x, documents)
        found: dict[int, Tensor] = {}
        for i in range(c.n_future)[:: -1 if c.topology == "anticausal" else 1]:
            before = found[i - 1] if c.topology in ("causal", "deepseek") and i else x
            before = found[i + 1] if c.topology == "anticausal" and i + 1 < c.n_future else before
            before = found[1] if c.topology == "branched" and i > 1 else before
            found[i] = self.link(i, before, ids, documents)
        of_its_own = c.topology in ("replicated", "branched")
        last = [self.weights[f"unembed.{i if of_its_own else 0}.weight"] for i in range(c.n_future)]
        return torch.stack([self.norm("norm.weight", found[i]) @ last[i].T for i in range(c.n_future)])

    def link(self, i: int, x: Tensor, ids: Tensor, documents: Tensor) -> Tensor:
        topology, name = self.config.topology, f"links.{i}."
        if topology == "deepseek" and i:
            ahead = torch.cat([ids[i:], torch.full((i,), EOT)])
            parts = [("hidden_norm", x), ("embed_norm", self.weights["embed.weight"][ahead])]
            both = torch.cat([self.norm(f"{name}{norm}.weight", part) for norm, part in parts], -1)
            return self.block(name + "block.", both @ self.weights[name + "merge.weight"].T, documents)
        if topology == "replicated" or (topology == "linear" and i == 0) or (topology == "branched" and i > 1):
            return x
        return x @ self.weights[name + "weight"].T if topology == "linear" else self.block(name, x, documents)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt() * self.weights[name]

    def block(self, name: str, x: Tensor, documents: Tensor) -> Tensor:
        c = self.config
        qkv = self.norm(name + "attention_norm.weight", x) @ self.weights[name + "qkv.weight"].T
        q, k, v = qkv.split([c.dim, c.key_value_heads * c.head_dim, c.key_value_heads * c.head_dim], -1)
        heads = []
        for h in range(c.attention_heads):
            group = h * c.key_value_heads // c.attention_heads
            q_h, k_h, v_h = (
                part.unflatten(-1, (-1, c.head_dim))[:, at] for part, at in ((q, h), (k, group), (v, group))
            )
            if c.qk_norm:
                q_h, k_h = self.norm(name + "q_norm.weight", q_h), self.norm(name + "k_norm.weight", k_h)
            heads.append(self.attend(self.rotate(q_h), self.rotate(k_h), v_h, documents))
        x = x + torch.cat(heads, -1) @ self.weights[name + "attention_out.weight"].T
        gate, up = (self.norm(name + "ffn_norm.weight", x) @ self.weights[name + "gate_up.weight"].T).chunk(2, -1)
        return x + (gate / (1 + (-gate).exp()) * up) @ self.weights[name + "ffn_out.weight"].T

    def rotate(self, x: Tensor) -> Tensor:
        out, half = x.clone(), self.config.head_dim // 2
        for position in range(len(x)):
            for i in range(half):
                angle = position * self.config.rope_theta ** (-i / half)
                a, b = x[position, i], x[position, i + half]
                out[position, i] = a * math.cos(angle) - b * math.sin(angle)
                out[position, i + half] = a * math.sin(angle) + b * math.cos(angle)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for p in range(len(q)):
            first = max(0, p + 1 - self.config.window) if self.config.window else 0
            seen = [j for j in range(first, p + 1) if documents[j] == documents[p]]
            scores = (k[seen] @ q[p]) / math.sqrt(self.config.head_dim)
            weights = (scores - scores.max()).exp()
            out[p] = weights @ v[seen] / weights.sum()
        return out


@pytest.mark.parametrize("attention", ["matmul", "sdpa"])
@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("topology", get_args(Topology))
@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_logits_and_losses_equal_the_twin(topology: str, window: int, attention: str, qk_norm: bool) -> None:
    model = model_for(topology, window, attention, qk_norm=qk_norm)
    twin = torch.stack([Twin(model).logits(*row) for row in zip(IDS, DOCUMENT_IDS, strict=True)], 1)[..., :VOCAB_SIZE]
    torch.testing.assert_close(model(IDS, DOCUMENT_IDS)[..., :VOCAB_SIZE], twin, rtol=0, atol=1e-12)
    targets = targets_of(IDS, DOCUMENT_IDS, N)
    logs = twin[:, :, :S] - twin[:, :, :S].logsumexp(-1, keepdim=True)
    nats = -logs.gather(-1, targets.clamp_min(0)[..., None])[..., 0] * (targets != IGNORED)
    losses = evaluate(model, IDS, DOCUMENT_IDS)
    torch.testing.assert_close(losses.nats, nats.sum((1, 2)), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(losses.end_nats, (nats * (targets == EOT)).sum((1, 2)), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("topology", get_args(Topology))
@pytest.mark.parametrize("qk_norm", [False, True])
def test_losses_of_the_backward_pass_too(topology: str, qk_norm: bool) -> None:
    model = model_for(topology, 0, qk_norm=qk_norm)
    expected = evaluate(model, IDS, DOCUMENT_IDS)
    for mode in ("sequential", "joint"):
        found = backward(model, IDS, DOCUMENT_IDS, mode=mode, for_drafts=True)  # type: ignore[arg-type]
        for name, value in vars(expected).items():
            if topology == "anticausal" and name in ("accepted", "drafts"):
                value = value * 0  # these heads are trained on no law of head 1's
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("topology", ["parallel", "anticausal"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_judge_of_near_ties_is_the_twin(topology: str, qk_norm: bool) -> None:
    """Its weights are the model's float32 ones; all arithmetic after that is float64."""
    model = model_for(topology, 0, qk_norm=qk_norm).float()
    ids = torch.tensor([EOT, *b"a rose is"])
    twin = Twin(model)
    twin.weights = {name: weight.double() for name, weight in twin.weights.items()}
    expected = twin.logits(ids, torch.ones_like(ids))[0, -1, :VOCAB_SIZE]
    found = torch.from_numpy(Float64Judge(model, window=512).logits(ids.numpy()))[:VOCAB_SIZE]
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
