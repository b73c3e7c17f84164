"""Ways of training that experiments.recipe tries beside the toolkit's own: each does what its name says."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import bytemtp
from bytemtp import train
from bytemtp.common.errors import UserError
from bytemtp.common.settings import ModelConfig
from bytemtp.data.stream import Batch, Cursor
from bytemtp.model.checkpoint import latest
from bytemtp.model.model import ByteMTP
from bytemtp.training import repeats
from experiments.recipe import tricks
from experiments.recipe.copying import bits_of_copies
from tests.experiments.small_cells import SMALL

CONFIG = ModelConfig(dim=16, layers=2, attention_heads=2, ffn_dim=16, n_future=2)


FOLDER = Path("no run")
"""For tricks that do nothing to a finished run."""


def test_zeros_make_every_layer_the_identity():
    with tricks.TRICKS["zero-init"](FOLDER):
        model = bytemtp.ByteMTP(CONFIG)
    ids = torch.randint(256, (1, 9))
    with torch.no_grad():
        logits = model(ids)
        expected = model.unembed[0](model.norm(model.embed(ids)))
    torch.testing.assert_close(logits[0][..., :257], expected[..., :257])


def test_the_embedding_has_unit_scale_and_nothing_else_changes():
    plain = bytemtp.ByteMTP(CONFIG, seed=3)
    with tricks.TRICKS["unit-embed"](FOLDER):
        model = bytemtp.ByteMTP(CONFIG, seed=3)
    assert float(model.embed.weight.detach().std()) == pytest.approx(1, rel=0.05)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (name != "embed.weight")


def test_z_loss_adds_its_gradient_and_leaves_the_loss():
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, 2, -100, 0, 6])
    plain = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    penalty = 1e-4 * torch.log(logits.exp().sum(-1)) ** 2
    (expected,) = torch.autograd.grad((plain + penalty * (targets != -100)).sum(), logits)
    with tricks.TRICKS["z-loss"](FOLDER):
        loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kept_is_the_average_of_the_weights_of_all_steps(tmp_path: Path, optimizer: str):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(b"the cat sat on the mat\n" * 400)
    settings = SMALL | {"train.steps": 3, "train.checkpoint_every": 1, "train.optimizer": optimizer}
    words = [str(corpus), *(f"--{name}={value}" for name, value in settings.items()), "--out"]
    train.main([*words, str(tmp_path / "plain"), "--train.keep-checkpoints=4"])
    with tricks.TRICKS["ema"](tmp_path / "ema"):
        train.main([*words, str(tmp_path / "ema")])
    average: dict[str, torch.Tensor] = {}
    for step in sorted((tmp_path / "plain" / "checkpoints").glob("step-*")):
        for name, weight in load_file(step / "model.safetensors").items():
            average[name] = weight if name not in average else 0.997 * average[name] + 0.003 * weight
    folder = latest(tmp_path / "ema")
    assert folder is not None
    kept = load_file(folder / "model.safetensors")
    assert kept.keys() == average.keys()
    for name, weight in kept.items():
        torch.testing.assert_close(weight, average[name])


def test_rows_repeat_stretches_of_their_text():
    """In place of random bytes of it, from one period to the next."""
    octets = torch.arange(1, 201, dtype=torch.uint8).expand(300, -1)
    batch = Batch(octets, torch.zeros(0, 2, dtype=torch.int64), torch.full((300,), 200), Cursor())
    with tricks.TRICKS["repeat-text"](FOLDER):
        made = repeats.with_repeats(batch, 300, 1, (0, 0)).octets[:, 1:].int()
    steps = made.diff()
    periods = [1 - step.min().item() for step in steps]
    assert all(set(step.tolist()) <= {1, 1 - period} for step, period in zip(steps, periods, strict=True))
    assert min(periods) == 3 and 150 < max(periods) <= 180
    assert len({row[0].item() for row in made}) > 60


def test_copies_of_a_text_cost_what_is_not_copied():
    """By a model that always expects the byte after the last one: the alphabet costs nothing, other text much."""
    model = ByteMTP(ModelConfig(dim=264, layers=1, attention_heads=1, ffn_dim=8, n_future=1)).eval()
    with torch.no_grad():
        for block in model.trunk:
            block.attention_out.weight.zero_()
            block.ffn_out.weight.zero_()
        model.embed.weight.copy_(torch.eye(264))
        model.unembed[0].weight.copy_(torch.eye(264).roll(1, 0) * 10)
    alphabet, other = bytes(range(97, 121)), b"zebra apples zebra apple"
    assert bits_of_copies(model, [alphabet, alphabet]) < 1e-3
    assert bits_of_copies(model, [other]) > 10
    assert bits_of_copies(model, [alphabet, other]) == pytest.approx(bits_of_copies(model, [other]) / 2, rel=1e-3)


def test_a_finished_average_stays_as_it_is(tmp_path: Path):
    """So that its scoring can be done again; one that was killed cannot be finished."""
    (tmp_path / "corpus.txt").write_bytes(b"the cat sat on the mat\n" * 400)
    run = tmp_path / "run"
    settings = (f"--{name}={value}" for name, value in SMALL.items())
    words = ["ema", str(tmp_path / "corpus.txt"), "--out", str(run), *settings]
    tricks.main(words)
    folder = latest(run)
    assert folder is not None
    before = (folder / "model.safetensors").read_bytes()
    tricks.main([*words, "--resume"])
    assert latest(run) == folder and (folder / "model.safetensors").read_bytes() == before
    (folder / tricks.MARK).unlink()
    with pytest.raises(UserError, match="the average of a killed run is lost"):
        tricks.main([*words, "--resume"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "unknown trick 'none'; choose from zero-init, "),
        (["ema", "--resume"], "the average of a killed"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        tricks.main(arguments)
