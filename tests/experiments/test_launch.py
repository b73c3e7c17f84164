"""The files of experiments/launch start a job, and Slurm's goes on with it; scripts play Slurm's own commands."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bytemtp.model.checkpoint import latest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SLURM = {
    "scontrol": "#!/bin/sh\necho 127.0.0.1\n",
    "srun": '#!/bin/sh\nshift\nexec "$@"\n',  # one machine; the option before the command is srun's own
}
SETTINGS = [
    *("--preset=nano", "--model.dim=16", "--model.layers=2", "--model.ffn_dim=24", "--model.n-future=2"),
    *("--train.steps=4", "--train.batch_size=4", "--train.far_rows=1", "--train.seq_len=16"),
    *("--train.sample-bytes=0", "--device=cpu"),
]


def start(folder: Path, name: str, *words: str) -> str:
    """What the job says, once it has ended well."""
    play = folder / "slurm"
    play.mkdir(exist_ok=True)
    for command, text in SLURM.items():
        (play / command).write_text(text)
        (play / command).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    found = {"PATH": f"{play}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    slurm = {"SLURM_JOB_NODELIST": "a", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    environment = os.environ | found | slurm | {"GPUS": "2", "PORT": port, "OMP_NUM_THREADS": "1"}
    line = ["bash", LAUNCH / name, *words]
    outcome = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stderr


@pytest.mark.slow
def test_jobs_start_and_go_on(tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text("alpha beta gamma delta\n" * 200)
    words = [str(corpus), "--out", str(run), *SETTINGS, "--train.parallel=fsdp", "--stop-after=2"]
    assert "parallel: fsdp (as asked)" in start(tmp_path, "torchrun.sh", *words)
    assert latest(run) == run / "checkpoints" / "step-00000002"
    said = start(tmp_path, "slurm.sbatch", str(corpus), str(run), *SETTINGS)
    assert "parallel: fsdp (as asked)" in said
    assert latest(run) == run / "checkpoints" / "step-00000004"
    start(tmp_path, "slurm.sbatch", str(corpus), str(tmp_path / "new"), *SETTINGS)
    assert latest(tmp_path / "new") == tmp_path / "new" / "checkpoints" / "step-00000004"
