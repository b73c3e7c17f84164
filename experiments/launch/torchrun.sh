#!/usr/bin/env bash
# One machine's part of a training job on several.  Run it on each of them, with the same words but for NODE:
#
#     NODES=2 NODE=0 HOST=first.machine experiments/launch/torchrun.sh PATH --out RUN --preset 7b
#
# NODES: how many machines; NODE: the number of this one, from 0; HOST: name of machine 0, which the others must reach
# at PORT (29500); GPUS: processes on this machine, as many as it has GPUs unless given; RESTARTS: how often the
# processes may be started again when one has died.  All machines must see PATH and RUN under these names.
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "${GPUS:-gpu}" \
    --master-addr "${HOST:-127.0.0.1}" --master-port "${PORT:-29500}" \
    --max-restarts "${RESTARTS:-3}" --shutdown-timeout 540 -m bytemtp.train "$@"
