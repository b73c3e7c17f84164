"""Bytes that a step sends: rings that are walked, and sums by hand.  What is counted in a step: test_sharding.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytemtp.common.settings import ModelConfig, Settings, TrainConfig, changed
from bytemtp.model.model import ByteMTP
from bytemtp.training.optimizer import is_layer_matrix
from bytemtp.training.traffic import _sent, traffic
from experiments.launch.measure import sent_by

SMALL = Settings(
    ModelConfig(dim=16, layers=4, attention_heads=2, ffn_dim=24, n_future=3, topology="parallel"),
    TrainConfig(batch_size=16, accumulate=2, seq_len=16),
)
NAMED = dict(ByteMTP(SMALL.model).named_parameters())
MATRICES = sum(p.numel() for name, p in NAMED.items() if is_layer_matrix(name, p))
SMALL_ONES = sum(p.numel() for p in NAMED.values()) - MATRICES


def near(size: float) -> Any:
    """But for what is rounded down."""
    return pytest.approx(size, abs=8)


@given(st.integers(1, 9), st.integers(1, 50))
def test_a_ring_sends_each_part_to_the_next(processes: int, part: int) -> None:
    """All have all parts when each has passed on what came from the one before, for as many rounds as that takes."""
    have = [{rank} for rank in range(processes)]
    newest, sent = [*range(processes)], 0
    while any(len(parts) < processes for parts in have):
        newest = [newest[rank - 1] for rank in range(processes)]
        sent += part
        for parts, new in zip(have, newest, strict=True):
            parts.add(new)
    assert _sent(part * processes, processes) == sent


def test_with_all_weights_each_gradients_are_summed_once() -> None:
    assert traffic(SMALL, torch.float32, 1, sharded=False).total == 0
    found = traffic(SMALL, torch.bfloat16, 4, sharded=False)
    assert (found.weights, found.gradients) == (0, 0)
    assert found.total == near(2 * 4 * (MATRICES + SMALL_ONES) * 3 / 4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shards", [0, 2, 8])
def test_sharded_matrices_are_gathered_twice_and_summed_once_a_round(shards: int, optimizer: str) -> None:
    own = changed(SMALL, **{"train.shards": shards, "train.optimizer": optimizer})
    found = traffic(own, torch.bfloat16, 8, sharded=True)
    share, copies = (1 / 2, 4) if shards == 2 else (7 / 8, 1)
    assert found.weights == near(2 * 2 * 2 * MATRICES * share)
    assert found.gradients == near(2 * 4 * MATRICES * share)
    once = 2 * 4 * SMALL_ONES * 7 / 8 + 2 * 4 * MATRICES / (8 // copies) * (copies - 1) / copies
    assert found.once == near(once + (2 * MATRICES * share if optimizer == "muon" else 0))


def test_what_is_frozen_is_gathered_once_and_never_summed() -> None:
    frozen = replace(SMALL, train=replace(SMALL.train, freeze="trunk"))
    model = ByteMTP(SMALL.model)
    heads = sum(p.numel() for link in model.links[1:] for p in link.parameters() if p.dim() == 2)
    found = traffic(frozen, torch.float32, 2, sharded=True)
    assert found.weights == near(2 * 4 * (MATRICES + heads) / 2)
    assert found.gradients == near(2 * 4 * heads / 2)


@pytest.mark.parametrize(("parts", "recomputed"), [(1, False), (2, False), (4, True)])
def test_parts_of_rows_are_exchanged_in_every_layer(parts: int, recomputed: bool) -> None:
    """Of grouped queries the keys and values are half as wide; heads 2 and 3 learn from half of the rows."""
    own = changed(SMALL, **{"model.kv_heads": 1, "train.far_rows": 0.5, "train.context_parallel": parts})
    own = changed(own, **{"train.activation_checkpointing": recomputed})
    found = traffic(own, torch.bfloat16, 8, sharded=False)
    positions = 16 * 16 / 8  # of two micro-batches
    layers = own.model.trunk_layers * (3 if recomputed else 2) + 2 * (1 + 0.5 + 0.5)
    assert found.attention == near(2 * positions * (2 * 16 + 2 * 8) * layers * (parts - 1) / parts)
    assert found.total == found.once + found.attention
    frozen = traffic(replace(own, train=replace(own.train, freeze="trunk")), torch.bfloat16, 8, sharded=False)
    layers = own.model.trunk_layers + 1 + 2 * (0.5 + 0.5)  # nothing goes back beyond heads 2 and 3
    assert frozen.attention == near(2 * positions * (2 * 16 + 2 * 8) * layers * (parts - 1) / parts)


def test_an_unknown_collective_is_not_overlooked() -> None:
    with pytest.raises(KeyError, match="c10d::alltoall_ is no collective that a step is known to use"):
        sent_by("c10d::alltoall_", (), None)
