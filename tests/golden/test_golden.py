"""Behaviour that was recorded and has to stay: see recipes.py.  test_sandbox.py reads verdicts.json."""

import json
import math
from pathlib import Path

import pytest
import recipes

HERE = Path(__file__).parent
TRAINING, DECODING, BATCHES = (
    json.loads((HERE / f"{name}.json").read_text()) for name in ("training", "decoding", "batches")
)
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Of a loss, in nats, on another processor: 20 steps pass on what they round differently."""

same_machine = pytest.mark.skipif(
    recipes.machine() != TRAINING["machine"], reason=f"recorded on {TRAINING['machine']}, this is {recipes.machine()}"
)


def test_batches_are_the_same_everywhere():
    assert recipes.batches() == BATCHES


@pytest.mark.parametrize("topology", TRAINING["topologies"])
def test_losses_and_weights(topology):
    for dtype, now in recipes.training(topology).items():
        then = TRAINING["topologies"][topology][dtype]
        assert all(map(lambda a, b: math.isclose(a, b, abs_tol=TOLERANCE[dtype]), now["losses"], then["losses"]))
        if recipes.machine() == TRAINING["machine"]:
            assert now == then


@same_machine
@pytest.mark.parametrize("topology", DECODING["topologies"])
def test_decoded_bytes(topology):
    assert recipes.decoding(topology) == DECODING["topologies"][topology]
