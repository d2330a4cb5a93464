#!/usr/bin/env bash
# Trains on several machines that reach each other by ssh. See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: run_hosts.sh HOSTFILE TRAIN.PY [ITS ARGUMENTS]

Runs a training script on the machines of a file with lines such as

  node1 slots=4
  node2 slots=4

where slots is the number of ranks, one for each GPU. Each machine must have the same
environment and the script in the same places (a shared folder, or the same image),
and let this one in by ssh without a password. That is checked before anything starts.

Environment: SSH_PORT, SSH_IDENTITY (what ssh gets as -p and -i), INTERFACE (name of
the network interface, the same on all machines; found by trying otherwise), OUTPUT
(where to keep what each rank prints; runs/TIME by default), GSNR_TF (the command,
gsnr-tf by default).
END
}

if (($# < 2)); then
    usage
    [[ ${1:-} == -h || ${1:-} == --help ]] && exit 0
    exit 2
fi
hostfile=$1
shift

options=()
if [[ -n ${SSH_PORT:-} ]]; then options+=(--ssh-port "$SSH_PORT"); fi
if [[ -n ${SSH_IDENTITY:-} ]]; then options+=(--ssh-identity-file "$SSH_IDENTITY"); fi
# Where machines have several networks, name the fast one.
if [[ -n ${INTERFACE:-} ]]; then options+=(--network-interface "$INTERFACE"); fi

exec "${GSNR_TF:-gsnr-tf}" run \
    --hostfile "$hostfile" \
    ${options[@]+"${options[@]}"} \
    --output-dir "${OUTPUT:-runs/$(date +%Y%m%d-%H%M%S)}" \
    "$@"
