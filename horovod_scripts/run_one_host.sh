#!/usr/bin/env bash
# Trains on the cores or GPUs of this machine. See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: run_one_host.sh TRAIN.PY [ITS ARGUMENTS]

Runs a training script on several ranks of this machine: one for each GPU, or two
on CPUs.

Environment: RANKS (another number of ranks), OUTPUT (where to keep what each rank
prints; runs/TIME by default), GSNR_TF (the command, gsnr-tf by default).
END
}

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    usage
    exit $(($# == 0 ? 2 : 0))
fi

# One rank for each GPU: NCCL refuses two on one.
gpus=$(nvidia-smi -L 2>/dev/null </dev/null | grep -c '^GPU' || true)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}

# Threads: gsnr-tf gives each rank its share of the cores, unless OMP_NUM_THREADS or
# TF_NUM_INTRAOP_THREADS say otherwise.
exec "${GSNR_TF:-gsnr-tf}" run \
    --np "$ranks" \
    --output-dir "${OUTPUT:-runs/$(date +%Y%m%d-%H%M%S)}" \
    "$@"
