#!/usr/bin/env bash
# From the files on this machine to a model and its numbers.  Start it by: make demo
#
#   1. corpus   the standard library of this Python, deduplicated; 5 % of it held out
#   2. train    preset tiny, 8 heads, for MINUTES of the clock
#   3. score    bits per byte of each head on the held-out files, beside zstd -19 and xz -9
#   4. draw     the curves of the run
#   5. decode   greedily, plain and speculative: how fast, and that both write the same
#   6. sample   200 bytes
#
# Started again, it goes on where it was and repeats the last four.  To start over, delete the two folders.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${DATA:-data/python}
run=${RUN:-runs/demo}
minutes=${MINUTES:-4}
prompt=${PROMPT:-"def read("}

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1. Corpus: $data"
if [ -e "$data/manifest.json" ]; then
    echo "there already"
else
    python -m corpora.python_library --out "$data"
fi

step "2. Training: $run"
if [ -e "$run/config.toml" ]; then
    python -m bytemtp.train --out "$run" --resume
else
    python -m bytemtp.train "$data/train.tar.zst" --out "$run" --preset tiny --train.minutes "$minutes"
fi

step "3. Bits per byte on files that it has not seen"
score=$(python -m bytemtp.evaluate bpb "$run" "$data/heldout.tar.zst" --json "$run/bpb.json")

step "4. Curves"
curves=$(python -m bytemtp.report "$run")

step "5. Decoding, plain and speculative"
speeds=$(python -m bytemtp.generate "$run" --prompt "$prompt" --max-bytes 300 --compare ar 2>&1 >"$run/greedy.bytes")

step "6. Sample"
sample=$(python -m bytemtp.generate "$run" --prompt "$prompt" --max-bytes 200 --temperature 0.7 | tr -d '\000')

cat <<SUMMARY

================================================================================
Held-out files, bits per byte (fewer is better)

$score

The run

$curves

Decoding 300 bytes

$speeds

A sample, after $prompt

$prompt$sample

model     $run
scores    $run/bpb.json
picture   $run/report.png
corpus    $data/manifest.json
again     delete $run and $data, then: make demo
================================================================================
SUMMARY
