"""pass@k on code problems: draw samples, run them in the sandbox, estimate, report.

The steps, each of which goes on where a killed run stopped:

    draw      DIR/samples.jsonl     samples.py
    judge     DIR/results.jsonl     execute.py; a line a sample, in the order of the samples
    score     DIR/summary.json      score.py
    report    DIR/report.html, DIR/passk.png      report.py

Try:  python -m bytemtp.evaluate passk RUN --problems data/tinycode/heldout.jsonl --out DIR --samples 10
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from bytemtp.common.errors import UserError
from bytemtp.common.files import write_json
from bytemtp.common.runtime import log, pick_device
from bytemtp.evaluation.code.execute import DEFAULT_K, judged_lines, launched, sample_of, scored, speed
from bytemtp.evaluation.code.imports import checked
from bytemtp.evaluation.code.problems import Problem, judgeable, read_problems
from bytemtp.evaluation.code.report import passk_table, write_report
from bytemtp.evaluation.code.samples import Cell, Plan, claim, digest, draw_missing, fingerprint, gather
from bytemtp.evaluation.code.score import summarise
from bytemtp.model.checkpoint import load_model
from bytemtp.model.model import ByteMTP
from bytemtp.sandbox.launch import Launch
from bytemtp.training.distributed import ALONE, World

MEMORY_MIB = 1024
"""For a program."""
RESULTS, SUMMARY = "results.jsonl", "summary.json"


@dataclass(frozen=True)
class Command:
    """Draw samples of a run for code problems, execute them in the sandbox, and estimate pass@k without bias.

    Some examples:

        python -m bytemtp.evaluate passk runs/code --problems heldout.jsonl --out passk --samples 20 --k 1 10
        python -m bytemtp.evaluate passk runs/code --problems heldout.jsonl --out sweep --temperature 0.2 0.4 0.8

    Killed, it goes on when the same command is given again.  With `torchrun --nproc-per-node 4 -m bytemtp.evaluate
    passk ...` four processes draw the very samples of one, and the first executes and reports.  With processes that
    cannot meet, give each `--shard 1/4`, `--shard 2/4`, ... to draw, and then the command without --shard.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """folder of the run, or one of its checkpoints/step-* folders"""
    problems: Path
    """problems as in HumanEval, MBPP or APPS: a .jsonl file, also .gz or .zst"""
    out: Path
    """folder to write to"""
    samples: int = 200
    """completions of each problem"""
    k: tyro.conf.DisallowNone[tuple[int, ...] | None] = None
    """numbers of tries to report; 1 10 100, as far as there are samples, unless given"""
    temperature: tuple[float, ...] = (0.8,)
    """one or several; customary are 0.2 for pass@1 and 0.8 for pass@10 and pass@100"""
    top_p: tuple[float, ...] = (0.95,)
    """one or several"""
    mode: Literal["ar", "speculative", "tree", "copy", "auto"] = "speculative"
    """of decoding: how fast, not what; but the draws of auto also depend on what passes cost on this machine, measured
    once, for a batch of this size"""
    max_bytes: int = 512
    """length of a completion at most"""
    batch: int = 32
    """completions of a problem that are drawn at the same time"""
    workers: int = 2
    """programs executed at the same time"""
    timeout: float = 3.0
    """seconds that a program may take"""
    site_packages: tyro.conf.DisallowNone[Path | None] = None
    """folder of packages that programs and tests may import, as numpy: a site-packages of the sandbox's Python"""
    shard: tyro.conf.DisallowNone[str | None] = None
    """I/N: only draw samples, for every N-th problem from the I-th on; 1/1 where programs cannot be executed"""
    limit: tyro.conf.DisallowNone[int | None] = None
    """only the first so many problems"""
    seed: int = 0
    """of the draws"""
    unsafe: tyro.conf.FlagCreatePairsOff[bool] = False
    """run the programs without isolation"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def main(self, world: World = ALONE) -> None:
        ks, shard = tries(self), parse_shard(self.shard)
        if world.size > 1 and shard[1] > 1:
            raise UserError(f"--shard is for processes that cannot meet, and these {world.size} can; leave it out")
        problems = chosen_problems(self)
        plan = plan_of(self, judgeable(problems))
        device = pick_device(self.device).value
        world.check_device(device)
        judges = self.shard is None and world.is_first  # asked for now: what is amiss must not be told after hours
        launch = launched(self.workers, self.timeout, MEMORY_MIB, self.unsafe, self.site_packages) if judges else None
        problems = checked(launch, problems) if launch is not None else problems
        model = load_model(self.run, device)
        world.share(lambda: claim(self.out, settings_of(plan, model)))
        start = time.perf_counter()
        mine = shard if world.size == 1 else (world.rank + 1, world.size)
        drawn = draw_missing(model, plan, self.out, batch=self.batch, shard=mine)
        drawn = int(world.sum(torch.tensor(drawn)))  # from here on all samples are there
        seconds = time.perf_counter() - start
        if drawn:
            log(f"drew {drawn:,} bytes of completions in {seconds:.1f} s, {drawn / seconds:,.0f} bytes/s")
        if launch is not None:
            finish(plan, problems, self, ks, launch)
        elif self.shard is not None and world.is_first:
            log("when all shards are drawn, give the command without --shard to execute and report")


def finish(plan: Plan, problems: Sequence[Problem], options: Command, ks: Sequence[int], launch: Launch) -> None:
    """Execute, score and report what is drawn.  problems: `checked`, also those that cannot be judged."""
    lines = gather(plan, options.out)
    start = time.perf_counter()
    samples = list(map(sample_of, lines))
    judged, new = judged_lines(launch, problems, samples, lines, options.out / RESULTS, options.workers)
    measured = speed(new, time.perf_counter() - start, options.out / SUMMARY)
    problems, results, faults = scored(problems, judged)
    summary = summarise(problems, results, ks) | {"not_judged": faults} | measured
    write_json(options.out / SUMMARY, summary, "; samples and results are kept")
    write_report(options.out, summary, results, problems)
    print(passk_table(summary))
    print(f"\nreport: {options.out / 'report.html'}")


def tries(options: Command) -> list[int]:
    """The k to report.  UserError for those that need more samples."""
    for name in ("samples", "batch", "workers", "max_bytes"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be 1 or more")
    ks = sorted(set(options.k or ())) or [k for k in DEFAULT_K if k <= options.samples]
    if not 1 <= ks[0] <= ks[-1] <= options.samples:
        wrong = ks[0] if ks[0] < 1 else ks[-1]
        raise UserError(f"--k {wrong} cannot be told from {options.samples} samples; it must be from 1 to --samples")
    return ks


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/4` -> (2, 4); (1, 1) if there is none."""
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard is {text!r}; write I/N with I from 1 to N, such as 1/4")
    return int(found[1]), int(found[2])


def chosen_problems(options: Command) -> list[Problem]:
    """UserError if there are none."""
    problems = read_problems(options.problems)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}; it must be 1 or more")
    return problems[: options.limit]


def plan_of(options: Command, problems: Sequence[Problem]) -> Plan:
    """UserError for temperatures or top-p that make no sense."""
    for top_p in options.top_p:
        if not 0 < top_p <= 1:
            raise UserError(f"--top-p is {top_p}; it must be above 0 and at most 1")
    for temperature in options.temperature:
        if not 0 <= temperature < math.inf:
            raise UserError(f"--temperature is {temperature}; it must be 0 or more, and finite")
        if temperature == 0 and options.samples > 1:
            raise UserError(f"temperature 0 gives the same sample {options.samples} times; ask for --samples 1")
    cells = [Cell(*cell) for cell in dict.fromkeys(product(options.temperature, options.top_p))]
    return Plan(problems, cells, options.samples, options.max_bytes, options.mode, options.seed)


def settings_of(plan: Plan, model: ByteMTP) -> dict[str, Any]:
    """What the samples depend on."""
    return {
        "model": fingerprint(model),
        "problems": len(plan.problems),
        "prompts": digest(
            "".join(problem.task_id + problem.prompt for problem in plan.problems).encode("utf-8", "surrogatepass")
        ),
        "samples": plan.samples,
        "temperature": sorted({cell.temperature for cell in plan.cells}),
        "top_p": sorted({cell.top_p for cell in plan.cells}),
        "mode": plan.mode,
        "max_bytes": plan.max_bytes,
        "seed": plan.seed,
    }
