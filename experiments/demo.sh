#!/usr/bin/env bash
# From the files on this machine to models and their numbers, in some ten minutes on two cores.  Start it by: make demo
#
#   1. corpora  the standard library of this Python, 5 % of it held out; and short functions with tests (tiny code)
#   2. train    preset tiny, 8 heads, on the library, for MINUTES of the clock; bits per byte beside zstd -19 and xz -9
#   3. decode   a function that it has not seen, plainly and with drafts, by the heads and copied from an index of the
#               training files: how fast, and that both write the same
#   4. train    the same on tiny code, for CODE_STEPS (by the clock it would be another run each time, and the moment when
#               it learns to copy from its prompt hangs on little), in rows that hold whole functions from the start
#   5. decode   its held-out problems, in all modes: how fast, and that all write the same
#   6. pass@k   SAMPLES programs for each held-out problem, run in the sandbox
#
# Started again, it goes on where it was.  To start over, delete the folders that the summary names.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${DATA:-data}
runs=${RUNS:-runs}
minutes=${MINUTES:-4}
code_steps=${CODE_STEPS:-5000}
samples=${SAMPLES:-10}
library=$runs/demo
code=$runs/demo-code

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# train RUN CORPUS OPTIONS...: go on with a run, or start it
train() {
    if [ -e "$1/config.toml" ]; then
        python -m bytemtp.train --out "$1" --resume
    else
        python -m bytemtp.train "$2" --out "$1" --preset tiny "${@:3}"
    fi
}

step "1. Corpora: $data"
[ -e "$data/python/manifest.json" ] || python -m corpora.python_library --out "$data/python"
[ -e "$data/tinycode/manifest.json" ] || python -m corpora.tinycode --out "$data/tinycode"

step "2. The Python library: $library"
train "$library" "$data/python/train.tar.zst" --train.minutes "$minutes"
score=$(python -m bytemtp.evaluate bpb "$library" "$data/python/heldout.tar.zst" --json "$library/bpb.json")
curves=$(python -m bytemtp.report "$library")

step "3. A held-out function, plainly and with drafts"
[ -e "$data/python/train.index" ] || python -m bytemtp.index "$data/python/train.tar.zst" --out "$data/python/train.index"
python experiments/heldout_function.py "$data/python/heldout.tar.zst" >"$library/prompt.bytes"
speeds=$(python -m bytemtp.generate "$library" --prompt-file "$library/prompt.bytes" --max-bytes 1000 --compare ar \
    --index "$data/python/train.index" --html "$library/decode.html" 2>&1 >"$library/greedy.bytes")

step "4. Tiny code: $code"
train "$code" "$data/tinycode/train.jsonl.zst" --train.steps "$code_steps" --train.seq-len 256 --train.first-seq-len 0 \
    --train.batch-size 6 --train.lr 2e-3 --train.embedding-lr 40 --train.repeat-rows 0

step "5. Held-out problems, in all modes"
code_speeds=$(python -m bytemtp.bench decode --run "$code" --files "$data/tinycode/heldout.jsonl" --text-field prompt \
    --prompts 32 --batches 1 --temperatures 0 --rounds 1)

step "6. pass@k on held-out problems"
python -m bytemtp.evaluate passk "$code" --problems "$data/tinycode/heldout.jsonl" --out "$code/passk" \
    --samples "$samples" --k 1 "$samples" --temperature 0.4 --max-bytes 160
passk=$(python -c "
import json, sys
summary = json.load(open(sys.argv[1]))
for name, value in summary.items():
    if name.startswith('pass@') and isinstance(value, float):
        print(f'{name:9} {value:.1%}  of {summary[\"problems\"]} problems that training never saw')
" "$code/passk/summary.json")

cat <<SUMMARY

================================================================================
Files that training has not seen, bits per byte (fewer is better)

$score

The run

$curves

A held-out function, 1,000 bytes by the model of the library
$speeds

Held-out problems, by the model of tiny code
$code_speeds

Does the code it writes run?
$passk

models    $library  $code
pictures  $library/report.png  $library/decode.html
report    $code/passk/report.html
again     delete $library, $code and $data, then: make demo
================================================================================
SUMMARY
