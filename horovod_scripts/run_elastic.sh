#!/usr/bin/env bash
# Trains on whichever machines are there, and goes on when some come or go.
# See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: run_elastic.sh HOSTFILE TRAIN.PY [ITS ARGUMENTS]

Runs a training script on those machines of a file that answer to ssh (discover_hosts.sh
finds out, every second). When one dies the others go on from the last commit; one that
is added to the file, or comes back, takes part from the next commit on. The script must
train under @gsnr_tf.elastic_run.

Environment: RANKS (to start with, 2 by default), MIN_RANKS (wait below it, RANKS by
default), MAX_RANKS (64), SSH_PORT, SSH_IDENTITY, INTERFACE (name of the network
interface; needed where the job starts on one machine), OUTPUT (where to keep what each
rank prints; runs/TIME by default), GSNR_TF (the command, gsnr-tf by default).
END
}

if (($# < 2)); then
    usage
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
HOSTFILE=$(realpath "$1") # for discover_hosts.sh
export HOSTFILE
shift
ranks=${RANKS:-2}

options=()
if [[ -n ${SSH_PORT:-} ]]; then options+=(--ssh-port "$SSH_PORT"); fi
if [[ -n ${SSH_IDENTITY:-} ]]; then options+=(--ssh-identity-file "$SSH_IDENTITY"); fi
if [[ -n ${INTERFACE:-} ]]; then options+=(--network-interface "$INTERFACE"); fi

# Without a cooldown a host that failed once is never asked again. With one it may come
# back after 10 seconds, later after longer, up to 10 minutes; and the job gives up after
# 100 changes, in case the failures have another cause than the hosts.
exec "${GSNR_TF:-gsnr-tf}" run \
    --np "$ranks" --min-np "${MIN_RANKS:-$ranks}" --max-np "${MAX_RANKS:-64}" \
    --host-discovery-script "$(dirname "${BASH_SOURCE[0]}")/discover_hosts.sh" \
    --blacklist-cooldown-range 10 600 --reset-limit 100 \
    ${options[@]+"${options[@]}"} \
    --output-dir "${OUTPUT:-runs/$(date +%Y%m%d-%H%M%S)}" \
    "$@"
