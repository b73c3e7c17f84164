"""Settings and fixtures of all tests.  Which test goes where: tests/README.md."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import load_file, save_file

# No deadline: the machine's speed is not under test.  In CI the examples are the same every time.
settings.register_profile(
    "default", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# One thread for us and for the commands that tests start: models here are too small to share out, and pytest already
# runs a process on every core.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Under nohup, or behind an & in a script, these are ignored, and so they would be in all commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


TORCH_COMPILE_WARNINGS = (
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning",
    "ignore:warmup, rep, and use_cuda_graph parameters are deprecated:DeprecationWarning",
    "ignore:TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled:UserWarning",
)
"""About torch's own code, and Triton's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the markers `gpu` and `compiled` mean."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("compiled"):
            for warning in TORCH_COMPILE_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def _unchecked_if_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    compiled = request.node.get_closest_marker("compiled") is not None
    jaxtyping.config.update("jaxtyping_disable", compiled)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Tests do not see each other's random numbers."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _passes_are_timed_briefly() -> None:
    """What a draft costs is not under test, but dozens of models have it measured."""
    from bytemtp.decoding import costs  # only now: shapes are checked of what is imported after pytest has begun

    costs.ROUNDS = 2


@pytest.fixture
def spoil() -> Callable[..., None]:
    """Make a file of weights one that does not fit: `spoil(path, "shape" | "lack" | "extra", name, extra)`."""

    def spoiled(path: Path, change: str, name: str, extra: str) -> None:
        weights = {key: tensor.clone() for key, tensor in load_file(path).items()}
        match change:
            case "shape":
                weights[name] = torch.zeros(3)
            case "lack":
                del weights[name]
            case "extra":
                weights[extra] = torch.zeros(3)
        save_file(weights, path)

    return spoiled


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with three heads, as `python -m bytemtp.train` leaves it.  Only to be read."""
    return _train(tmp_path_factory, n_future=3)


@pytest.fixture(scope="session")
def one_head_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the next byte's head alone."""
    return _train(tmp_path_factory, n_future=1)


def _train(tmp_path_factory: pytest.TempPathFactory, n_future: int) -> Path:
    from bytemtp.common.presets import PRESETS
    from bytemtp.common.settings import changed
    from bytemtp.training.trainer import train

    folder = tmp_path_factory.mktemp("trained")
    corpus = folder / "corpus.txt"
    corpus.write_bytes(b"a rose is a rose is a rose\n" * 300)
    shape = {
        "model.topology": "parallel",
        "model.dim": 16,
        "model.layers": 4,
        "model.attention_heads": 2,
        "model.ffn_dim": 32,
    }
    steps = {"train.steps": 2, "train.batch_size": 4, "train.seq_len": 32, "train.log_every": 1}
    plain = {"train.compile": "false", "train.sample_bytes": 0, "data.valid_fraction": 0.0}
    small = changed(PRESETS["nano"], **shape, **steps, **plain, **{"model.n_future": n_future})
    train(small, [str(corpus)], folder / "run", device="cpu")
    return folder / "run"
