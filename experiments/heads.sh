#!/usr/bin/env bash
# Bytes a pass and speed of decoding by topology (n = 8) and by number of heads (8, 16, 32), on tiny code.
#
# Trains preset tiny eight times, STEPS steps each (goes on where it was), then decodes held-out problems with each.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${DATA:-data/tinycode}
runs=${RUNS:-runs/heads}
steps=${STEPS:-1000}
models="replicated-8 linear-8 parallel-8 causal-8 anticausal-8 deepseek-8 replicated-16 replicated-32"

[ -e "$data/manifest.json" ] || python -m corpora.tinycode --out "$data"
for model in $models; do
    run=$runs/$model
    if [ -e "$run/config.toml" ]; then
        python -m bytemtp.train --out "$run" --resume
    else
        python -m bytemtp.train "$data/train.jsonl.zst" --out "$run" --preset tiny --train.steps "$steps" \
            --model.topology "${model%-*}" --model.n-future "${model#*-}" \
            --train.repeat-rows 0 --train.grow-at 0.7 --train.far-from 0 --train.head-schedule constant --train.unembedding-lr 1 \
            --model.transitions false
    fi
done
python -m bytemtp.bench decode --run $(for model in $models; do echo "$runs/$model"; done) --files "$data/heldout.jsonl" \
    --text-field prompt --prompts 48 --batches 1 --temperatures 0 --rounds 1 --heads 1 2 4 8 12 16 20 24 28 32 \
    --json "$runs/decode.json" --figure "$runs/decode.png"
