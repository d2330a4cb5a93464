#!/usr/bin/env bash
# Trains on the nodes of a Slurm allocation:
#
#   sbatch --nodes=2 --ntasks-per-node=4 run_slurm.sh TRAIN.PY [ITS ARGUMENTS]
#
# The options below are defaults, which the command line overrides. Slurm starts this
# script once, on the first node; the ranks on the others are started through ssh, which
# clusters allow to those who have a job there (pam_slurm_adopt puts them into it).
#
#SBATCH --job-name=gsnr_tf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --output=slurm-%j.log
# For GPUs, one to a rank:
##SBATCH --gpus-per-node=4
# Slurm tells this script two minutes before it kills the job, and the ranks have most of
# that time (--grace below) to finish their update and save.
#SBATCH --signal=B:TERM@120
# With REQUEUE=1 in the environment a job whose ranks have saved (exit code 75, see
# gsnr_tf.callbacks.SaveOnPreemption) goes back into the queue, and on from there.
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if (($# == 0)); then
    printf 'Usage: sbatch [OPTIONS OF SLURM] run_slurm.sh TRAIN.PY [ITS ARGUMENTS]\n' >&2
    exit 2
fi
: "${SLURM_JOB_NODELIST:?start this by sbatch, inside of which Slurm sets it}"

# "node[1-2]" as "node1:4,node2:4".
ranks=${SLURM_NTASKS_PER_NODE:-1}
hosts=''
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    hosts+=${hosts:+,}$node:$ranks
done

# Through ssh a rank sees all cores of the node and not those of its task.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$OMP_NUM_THREADS}

# In the background, since bash would hear of the signal only after the end.
"${GSNR_TF:-gsnr-tf}" run \
    --hosts "$hosts" \
    --output-dir "runs/slurm-${SLURM_JOB_ID:-0}" \
    --grace "${GRACE:-90}" \
    "$@" &
job=$!
trap 'kill -TERM "$job"' TERM INT
status=0
wait "$job" || status=$?
# Interrupted by the signal, `wait` returns before the job has ended.
while kill -0 "$job" 2>/dev/null; do
    status=0
    wait "$job" || status=$?
done
if ((status == 75)) && [[ ${REQUEUE:-} == 1 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
