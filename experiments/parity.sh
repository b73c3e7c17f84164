#!/usr/bin/env bash
# Eight heads beside one, with as many layers, on tiny code: pass@k on held-out problems, over seeds.
#
# Trains preset tiny twice a seed, STEPS steps each, draws 20 samples of each held-out problem at three temperatures, and
# prints the table.  Started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${DATA:-data/tinycode}
runs=${RUNS:-runs/parity}
steps=${STEPS:-2200}
seeds=${SEEDS:-0 1 2}

[ -e "$data/manifest.json" ] || python -m corpora.tinycode --out "$data"
for seed in $seeds; do
    for n in 8 1; do
        run=$runs/n$n-seed$seed
        if [ -e "$run/config.toml" ]; then
            python -m bytemtp.train --out "$run" --resume
        else
            python -m bytemtp.train "$data/train.jsonl.zst" --out "$run" --preset tiny --train.seq-len 256 \
                --train.first-seq-len 0 --train.batch-size 8 --train.steps "$steps" --model.n-future "$n" \
                --train.repeat-rows 0 --train.far-from 0 --train.head-schedule constant --train.unembedding-lr 1 --model.transitions false --train.seed "$seed"
        fi
        python -m bytemtp.evaluate passk "$run" --problems "$data/heldout.jsonl" --out "$run/passk" \
            --samples 20 --k 1 10 --temperature 0.2 0.4 0.8 --max-bytes 160
    done
done
python - "$runs" $seeds <<'TABLE'
import json, statistics, sys

runs, *seeds = sys.argv[1:]
print("| heads | temperature | pass@1, % | each seed | pass@10, % | each seed |\n| --- | --- | --- | --- | --- | --- |")
for n in (8, 1):
    summaries = [json.load(open(f"{runs}/n{n}-seed{seed}/passk/summary.json")) for seed in seeds]
    for cells in zip(*(summary["cells"] for summary in summaries)):
        row = [str(n), str(cells[0]["temperature"])]
        for k in (1, 10):
            scores = [100 * cell[f"pass@{k}"] for cell in cells]
            row += [f"{statistics.mean(scores):.1f}", " ".join(f"{score:.1f}" for score in scores)]
        print("| " + " | ".join(row) + " |")
TABLE
