"""pass@k: the estimate against enumeration, resuming at every point, shards, sweeps and bad input."""

import errno
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytemtp import evaluate
from bytemtp.common.errors import UserError
from bytemtp.common.jsonl import JsonLinesFile, read_lines
from bytemtp.decoding.chooser import Costs
from bytemtp.decoding.engines.native.engine import NativeEngine
from bytemtp.decoding.engines.tensor import TensorEngine
from bytemtp.evaluation.code import execute, passk
from bytemtp.evaluation.code import samples as samples_module
from bytemtp.evaluation.code.execute import Sample, Verdict
from bytemtp.evaluation.code.problems import Problem, read_problems
from bytemtp.evaluation.code.samples import Cell, Key, Plan, draw_missing, draw_samples, gather
from bytemtp.evaluation.code.score import estimates, interval, oracle, summarise
from bytemtp.model.checkpoint import load_model
from bytemtp.sandbox.launch import Launch, Limits

TASKS = 3


def problem_record(number: int, family: str | None = None) -> dict[str, Any]:
    return {
        "task_id": f"task/{number}",
        "prompt": f'def f(x):\n    """x plus {number}"""\n',
        "entry_point": "f",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
        **({"family": family} if family else {}),
    }


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [problem_record(number, family="odd" if number % 2 else "even") for number in range(TASKS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def problems(problem_file: Path) -> list[Problem]:
    return read_problems(problem_file)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """A judge that passes samples with an even number of letters; which samples it got."""
    seen: list[Sample] = []

    def verdicts(
        launch: Launch, problems: Sequence[Problem], samples: Sequence[Sample], workers: int
    ) -> Iterator[Verdict]:
        for sample in samples:
            seen.append(sample)
            good = len(sample.completion) % 2 == 0
            yield Verdict(good, "passed" if good else "failed: odd <b>")

    monkeypatch.setattr(execute, "verdicts", verdicts)
    without_sandbox(monkeypatch)
    return seen


def without_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(sys.executable, "", isolated=False, limits=Limits())
    monkeypatch.setattr(passk, "launched", lambda *_, **__: launch)
    monkeypatch.setattr(passk, "checked", lambda _, problems: list(problems))


def run(trained_run: Path, problem_file: Path, out: Path, *extra: str) -> None:
    small = ["--samples", "5", "--batch", "2", "--max-bytes", "6", "--device", "cpu"]
    small += [] if "--temperature" in extra else ["--temperature", "0.5", "1.0"]
    evaluate.main(["passk", str(trained_run), "--problems", str(problem_file), "--out", str(out), *small, *extra])


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_the_estimate_is_the_mean_over_all_subsets(results: list[bool], k: int) -> None:
    if k > len(results):
        with pytest.raises(UserError, match=f"no pass@{k}"):
            estimates({"task": results}, [k])
    else:
        subsets = list(itertools.combinations(results, k))
        assert estimates({"task": results}, [k])[k][0] == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_a_problem_without_samples_is_not_scored() -> None:
    scores = estimates({"a": [True, True], "c": [False, True, True]}, [1, 2])
    np.testing.assert_allclose(scores[1], [1, 2 / 3])
    np.testing.assert_allclose(scores[2], [1, 1])
    with pytest.raises(UserError, match="no pass@1 from 0 samples"):
        estimates({"a": [True], "b": []}, [1])


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [interval(rng.binomial(1, 0.3, 100).astype(float), seed) for seed in range(200)]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.99
    assert interval(np.ones(5)) == (1.0, 1.0)


def test_the_oracle_takes_the_best_cell_of_each_k() -> None:
    cells = [
        {"temperature": 0.2, "top_p": 1.0, "pass@1": 0.4, "pass@10": 0.5},
        {"temperature": 0.8, "top_p": 1.0, "pass@1": 0.3, "pass@10": 0.7},
    ]
    found = oracle(cells, [1, 10])
    assert found["pass@1"] == {"value": 0.4, "temperature": 0.2, "top_p": 1.0}
    assert found["pass@10"] == {"value": 0.7, "temperature": 0.8, "top_p": 1.0}
    assert "upper bound" in found["note"]


def test_summary(problems: list[Problem]) -> None:
    lines = [
        {"task_id": f"task/{task}", "temperature": 0.8, "top_p": 1.0, "passed": i < task, "result": result}
        for task in range(TASKS)
        for i in range(2)
        for result in ["passed" if i < task else "failed: AssertionError: 1"]
    ]
    summary = summarise(problems, lines, [1, 2])
    assert summary["pass@1"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert summary["pass@2"] == pytest.approx(2 / 3)
    assert (summary["problems"], summary["samples"], summary["temperature"]) == (3, 6, 0.8)
    [cell] = summary["cells"]
    assert cell["families"]["odd"] == {"problems": 1, "pass@1": 0.5, "pass@2": 1.0}
    assert cell["families"]["even"] == {"problems": 2, "pass@1": 0.5, "pass@2": 0.5}
    assert cell["verdicts"] == {"passed": 3, "failed": 3}
    assert "oracle" not in summary
    json.dumps(summary)


@pytest.mark.usefixtures("judged")
def test_files(trained_run: Path, problem_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(trained_run, problem_file, tmp_path / "out", "--k", "1", "5")
    samples, results = (read_lines(tmp_path / "out" / name) for name in ("samples.jsonl", "results.jsonl"))
    order = [(line["temperature"], line["task_id"], line["index"]) for line in samples]
    assert order == [(t, f"task/{i}", n) for t in (0.5, 1.0) for i in range(TASKS) for n in range(5)]
    assert [{name: line[name] for name in samples[0]} for line in results] == samples
    assert all(line["passed"] == (len(line["completion"]) % 2 == 0) for line in results)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"pass@1", "pass@5", "seconds", "programs_per_s", "oracle"} <= set(summary)
    assert [cell["temperature"] for cell in summary["cells"]] == [0.5, 1.0]
    printed = capsys.readouterr().out
    assert "oracle" in printed and str(tmp_path / "out" / "report.html") in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "failed: odd &lt;b&gt;" in page and "odd <b>" not in page
    assert (tmp_path / "out" / "passk.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("judged")
def test_samples_differ_and_repeat(trained_run: Path, problem_file: Path, tmp_path: Path) -> None:
    """Every sample has random numbers of its own; the same command gives the same, another seed others."""
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(trained_run, problem_file, tmp_path / name, "--seed", seed)
    texts = [(tmp_path / name / "samples.jsonl").read_bytes() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    completions = [line["completion"] for line in read_lines(tmp_path / "a" / "samples.jsonl")]
    assert len(set(completions)) > len(completions) / 2


@pytest.mark.parametrize("mode", ["ar", "speculative", "tree", "copy", "auto"])
def test_a_sample_does_not_depend_on_the_others(
    trained_run: Path, problems: list[Problem], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how many are drawn together, as long as passes cost the same."""
    costs = Costs(tuple(1 + 0.06 * ids for ids in range(16)), heads=0.1)
    monkeypatch.setattr("bytemtp.decoding.generate.costs_of", lambda *_, **__: costs)
    model = load_model(trained_run, "cpu")
    plan = Plan(problems, [Cell(0.9, 0.95)], 7, 12, mode, seed=0)

    def draw(indices: Sequence[int], batch: int) -> dict[int, str]:
        return dict(draw_samples(model, plan, plan.cells[0], problems[0], indices, batch))

    alone = {i: draw([i], 1)[i] for i in range(7)}
    assert len(set(alone.values())) > 1
    for batch in (1, 2, 3, 7, 32):
        assert draw(range(7), batch) == alone
    assert draw([5, 1], 2) == {5: alone[5], 1: alone[1]}


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("mode", ["copy", "auto"])
def test_modes_that_copy(
    trained_run: Path, problem_file: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, which asks for the costs of a whole batch, however many samples are missing."""
    asked: list[int] = []

    def costs(model: Any, rows: int, engine: str, *, greedy: bool, index: None) -> Costs:
        asked.append(rows)
        return Costs((1.0,) * 16, heads=0.0)

    monkeypatch.setattr("bytemtp.decoding.generate.costs_of", costs)
    run(trained_run, problem_file, tmp_path / "out", "--mode", mode, "--batch", "8")
    assert len(read_lines(tmp_path / "out" / "samples.jsonl")) == TASKS * 2 * 5
    assert asked == ([8] * TASKS * 2 if mode == "auto" else [])


def test_where_rows_round_together_a_problem_is_drawn_as_a_whole(
    trained_run: Path, problems: list[Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays, and what is missing is what the first run would have drawn."""
    model = load_model(trained_run, "cpu")
    plan = Plan(problems[:1], [Cell(0.9, 1.0)], 5, 6, "speculative", seed=0)
    for kind, expected in ((NativeEngine, [2, 4]), (TensorEngine, [0, 1, 2, 3, 4])):
        out, drawn = tmp_path / kind.__name__, list[int]()
        out.mkdir()
        draw_missing(model, plan, out, batch=2, shard=(1, 1))
        whole = gather(plan, out)
        (out / "samples.jsonl").write_text("".join(json.dumps(whole[i]) + "\n" for i in (0, 1, 3)))
        with monkeypatch.context() as patch:
            patch.setattr(samples_module, "engine_kind", lambda *_, kind=kind: kind)
            patch.setattr(
                samples_module, "draw_samples", lambda *args, to=drawn: to.extend(args[4]) or draw_samples(*args)
            )
            draw_missing(model, plan, out, batch=2, shard=(1, 1))
        assert drawn == expected and len(read_lines(out / "samples.jsonl")) == 5
        assert gather(plan, out) == whole


def test_a_sample_is_what_the_decoder_writes(trained_run: Path, problems: list[Problem]) -> None:
    """Beside `generate`, greedy: the same bytes, up to where the problem's solution ends."""
    from bytemtp.decoding.generate import generate
    from bytemtp.evaluation.code.problems import truncate

    model = load_model(trained_run, "cpu")
    plan = Plan(problems, [Cell(0.0, 1.0)], 1, 30, "speculative", seed=0)
    for problem in problems:
        stop = [text.encode() for text in problem.stops]
        written = generate(model, problem.prompt.encode(), 30, mode="ar", stop=stop).data
        assert list(draw_samples(model, plan, plan.cells[0], problem, [0], 1)) == [
            (0, truncate(problem, written.decode("utf-8", "replace")))
        ]


def test_resumed_at_every_cut(
    trained_run: Path, problem_file: Path, tmp_path: Path, judged: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples and results cut anywhere, also within a line, become again what they were; nothing is done twice."""
    run(trained_run, problem_file, tmp_path / "whole")
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in ("samples.jsonl", "results.jsonl")}
    drawn: list[int] = []
    monkeypatch.setattr(samples_module, "draw_samples", lambda *args: drawn.append(len(args[4])) or draw_samples(*args))
    for name in whole:
        ends = [i + 1 for i, byte in enumerate(whole[name]) if byte == 10]
        for number, cut in enumerate([0, *ends[::6], *(end - 9 for end in ends[1::14])]):
            out = tmp_path / f"{name}-{number}"
            shutil.copytree(tmp_path / "whole", out)
            (out / name).write_bytes(whole[name][:cut])
            if name == "samples.jsonl":
                (out / "results.jsonl").unlink()
            judged.clear()
            drawn.clear()
            run(trained_run, problem_file, out)
            assert {name: (out / name).read_bytes() for name in whole} == whole
            kept = whole[name][:cut].count(b"\n")
            assert len(judged) == len(ends) - (kept if name == "results.jsonl" else 0)
            assert sum(drawn) == (len(ends) - kept if name == "samples.jsonl" else 0)


def test_a_finished_run_is_not_executed_again(
    trained_run: Path, problem_file: Path, tmp_path: Path, judged: list[Sample]
) -> None:
    run(trained_run, problem_file, tmp_path / "out")
    before = json.loads((tmp_path / "out" / "summary.json").read_text())
    judged.clear()
    run(trained_run, problem_file, tmp_path / "out", "--k", "2")
    assert judged == []
    after = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert after["seconds"] == before["seconds"] and "pass@2" in after and "pass@1" not in after


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("of", [2, 3, 5])
def test_shards_are_a_partition(trained_run: Path, problem_file: Path, tmp_path: Path, of: int) -> None:
    """Each problem is of one shard, and together they are the run of a single process, byte for byte."""
    run(trained_run, problem_file, tmp_path / "whole")
    out = tmp_path / "shards"
    for number in range(of, 0, -1):
        run(trained_run, problem_file, out, "--shard", f"{number}/{of}")
    assert not (out / "results.jsonl").exists()
    drawn = [line["task_id"] for path in out.glob("samples.*-of-*.jsonl") for line in read_lines(path)]
    assert sorted(drawn) == sorted(line["task_id"] for line in read_lines(tmp_path / "whole" / "samples.jsonl"))
    run(trained_run, problem_file, out)
    for name in ("samples.jsonl", "results.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@given(st.integers(1, 40), st.integers(1, 12))
def test_shards_split_the_problems(count: int, of: int) -> None:
    problems = list(range(count))
    shards = [problems[passk.parse_shard(f"{i}/{of}")[0] - 1 :: of] for i in range(1, of + 1)]
    assert sorted(itertools.chain(*shards)) == problems


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--seed", "1"], "was begun with seed 0, not 1"),
        (["--samples", "4"], "was begun with samples 5, not 4"),
        (["--temperature", "0.5"], "was begun with temperature [0.5, 1.0], not [0.5]"),
        (["--limit", "2"], "was begun with problems 3, not 2"),
        (["--max-bytes", "7"], "was begun with max_bytes 6, not 7"),
    ],
)
def test_other_settings_may_not_continue(
    trained_run: Path, problem_file: Path, tmp_path: Path, extra: list[str], message: str
) -> None:
    run(trained_run, problem_file, tmp_path / "out", "--shard", "1/3")
    with pytest.raises(UserError) as caught:
        run(trained_run, problem_file, tmp_path / "out", *extra)
    assert message in str(caught.value)


def test_another_model_may_not_continue(
    trained_run: Path, one_head_run: Path, problem_file: Path, tmp_path: Path
) -> None:
    run(trained_run, problem_file, tmp_path / "out", "--shard", "1/3")
    with pytest.raises(UserError, match="was begun with model"):
        run(one_head_run, problem_file, tmp_path / "out", "--shard", "1/3")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--k", "6"], "--k 6 cannot be told from 5 samples"),
        (["--k", "0", "1"], "--k 0 cannot be told from 5 samples"),
        (["--samples", "0"], "--samples is 0; it must be 1 or more"),
        (["--max-bytes", "0"], "--max-bytes is 0; it must be 1 or more"),
        (["--batch", "-1"], "--batch is -1"),
        (["--timeout", "0"], "timeout 0.0, memory 1024: there must be a worker, some time up to a day"),
        (["--timeout", "nan"], "timeout nan, memory 1024: there must be a worker, some time up to a day"),
        (["--temperature", "nan"], "--temperature is nan; it must be 0 or more, and finite"),
        (["--temperature", "inf"], "--temperature is inf; it must be 0 or more, and finite"),
        (["--site-packages", "no/such"], "no/such"),
        (["--shard", "4/3"], "--shard is '4/3'; write I/N with I from 1 to N"),
        (["--shard", "half"], "--shard is 'half'"),
        (["--top-p", "0"], "--top-p is 0.0; it must be above 0 and at most 1"),
        (["--temperature", "-1"], "--temperature is -1.0; it must be 0 or more"),
        (["--temperature", "0"], "temperature 0 gives the same sample 5 times; ask for --samples 1"),
        (["--limit", "0"], "--limit is 0"),
        (["--problems", "missing.jsonl"], "missing.jsonl"),
        (["--sampels", "3"], "did you mean '--samples'"),
    ],
)
def test_bad_input_is_one_clear_line(
    trained_run: Path, problem_file: Path, tmp_path: Path, extra: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(trained_run, problem_file, tmp_path / "out", *extra)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_samples_are_drawn_where_no_program_can_be_executed(
    trained_run: Path, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*_: Any) -> None:
        raise UserError("no sandbox")

    monkeypatch.setattr("bytemtp.evaluation.code.passk.launched", launched)
    with pytest.raises(UserError, match="no sandbox"):
        run(trained_run, problem_file, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "it is told before anything is drawn"
    run(trained_run, problem_file, tmp_path / "out", "--shard", "1/1")
    assert [*(tmp_path / "out").glob("samples*.jsonl")] and not (tmp_path / "out/results.jsonl").exists()


def test_problems_of_which_none_can_be_judged_are_told_before_anything_is_drawn(
    trained_run: Path, problem_file: Path, tmp_path: Path
) -> None:
    problem_file.write_text(json.dumps(problem_record(0) | {"test": "from no_such_module import *\n"}))
    with pytest.raises(UserError, match="none of the 1 problems can be judged"):
        run(trained_run, problem_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("judged")
def test_an_unwritable_place(trained_run: Path, problem_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write to .*file: .*--out must name a folder"):
        run(trained_run, problem_file, tmp_path / "file")


@pytest.mark.usefixtures("judged")
def test_a_full_disk_keeps_what_is_done(
    trained_run: Path, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up in the middle of a line; with room again the same command goes on."""
    run(trained_run, problem_file, tmp_path / "whole")
    append, calls = JsonLinesFile.append, itertools.count()

    def fill_up(self: JsonLinesFile, records: Any) -> None:
        if next(calls) < 7:
            return append(self, records)
        with self.path.open("ab") as file:
            file.write(b'{"task_id": "ta')
        open_full = pytest.MonkeyPatch()
        open_full.setattr(Path, "open", raise_full)
        try:
            append(self, records)
        finally:
            open_full.undo()

    monkeypatch.setattr(JsonLinesFile, "append", fill_up)
    with pytest.raises(
        UserError, match=r"cannot write .*samples.jsonl: No space left on device; what is in it is kept"
    ):
        run(trained_run, problem_file, tmp_path / "out")
    monkeypatch.undo()
    assert len(read_lines(tmp_path / "out" / "samples.jsonl")) == 7
    without_sandbox(monkeypatch)
    monkeypatch.setattr(
        execute, "verdicts", lambda _, problems, samples, workers: (Verdict(True, "passed") for _ in samples)
    )
    run(trained_run, problem_file, tmp_path / "out")
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def raise_full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"a": 1}\n')
    lines = JsonLinesFile(tmp_path / "samples.jsonl")
    (tmp_path / "samples.jsonl").unlink()
    (tmp_path / "samples.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        lines.append([{"b": 2}])


@pytest.mark.usefixtures("judged")
def test_samples_of_an_unknown_task(trained_run: Path, problem_file: Path, tmp_path: Path) -> None:
    run(trained_run, problem_file, tmp_path / "out", "--shard", "1/3")
    stranger = samples_module.sample_line(Key(Cell(0.5, 0.95), "task/9", 0), "")
    (tmp_path / "out" / "samples.jsonl").write_text(json.dumps(stranger) + "\n")
    with pytest.raises(UserError, match="holds a sample of task/9, which was not asked for"):
        run(trained_run, problem_file, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": "task/0", "completion": ""}\n', "has a line that is no sample of passk"),
        ("not json\n", "has a line that is no JSON"),
    ],
)
def test_damaged_samples(trained_run: Path, problem_file: Path, tmp_path: Path, text: str, message: str) -> None:
    run(trained_run, problem_file, tmp_path / "out", "--shard", "1/3")
    (tmp_path / "out" / "samples.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        run(trained_run, problem_file, tmp_path / "out")


def test_samples_of_somebody_else_are_left_alone(trained_run: Path, problem_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.jsonl").write_text("")
    with pytest.raises(UserError, match=r"holds samples but no settings.json"):
        run(trained_run, problem_file, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]"])
def test_damaged_settings(trained_run: Path, problem_file: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json"):
        run(trained_run, problem_file, tmp_path / "out")


@pytest.mark.usefixtures("judged")
def test_results_of_other_samples(trained_run: Path, problem_file: Path, tmp_path: Path) -> None:
    run(trained_run, problem_file, tmp_path / "out")
    results = read_lines(tmp_path / "out" / "results.jsonl")
    results[0]["completion"] += "x"
    (tmp_path / "out" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results[:3]))
    with pytest.raises(UserError, match=r"results.jsonl has results of other samples"):
        run(trained_run, problem_file, tmp_path / "out")


def test_a_missing_sample_is_not_scored(trained_run: Path, problems: list[Problem], tmp_path: Path) -> None:
    plan = Plan(problems, [Cell(0.9, 1.0)], 2, 4, "ar", seed=0)
    draw_missing(load_model(trained_run, "cpu"), plan, tmp_path, batch=8, shard=(1, 2))
    with pytest.raises(UserError, match=r"2 samples are missing in .*, the first of task/1"):
        gather(plan, tmp_path)


def test_the_real_sandbox(
    trained_run: Path, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right answers written by a model that knows them pass; others do not."""

    def know(
        model: Any, plan: Plan, cell: Cell, problem: Problem, indices: Sequence[int], batch: int
    ) -> list[tuple[int, str]]:
        return [(i, str(problem.canonical) if i % 2 == 0 else "    return None\n") for i in indices]

    monkeypatch.setattr(samples_module, "draw_samples", know)
    run(trained_run, problem_file, tmp_path / "out", "--k", "1", "5")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["pass@1"], summary["pass@5"]) == (0.6, 1.0)
    assert summary["cells"][0]["verdicts"] == {"passed": 9, "failed": 6}
    assert summary["programs_per_s"] > 0


def test_problems_that_cannot_be_judged_do_not_count(
    trained_run: Path,
    problem_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One has no tests, so that nothing is drawn for it; the tests of the other import what is not there."""
    lines = problem_file.read_text().splitlines()
    lines.append(json.dumps(problem_record(3) | {"test": ""}))
    lines.append(json.dumps(problem_record(4) | {"test": "from no_such_module import *\n" + problem_record(4)["test"]}))
    problem_file.write_text("\n".join(lines))
    monkeypatch.setattr(samples_module, "draw_samples", lambda *args: [(i, str(args[3].canonical)) for i in args[4]])
    run(trained_run, problem_file, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["problems"], summary["pass@1"], list(summary["not_judged"])) == (TASKS, 1.0, ["task/3", "task/4"])
    assert "2 problems could not be judged" in capsys.readouterr().out
    assert "2 problems could not be judged" in (tmp_path / "out" / "report.html").read_text()
