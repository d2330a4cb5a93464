#!/usr/bin/env bash
# Prints those hosts of the file $HOSTFILE that answer now, one on a line: node1:4
#
# For elastic jobs; horovodrun calls it every second. Its lines are those of any host
# file, node1:4 or `node1 slots=4`. A host answers if its port for ssh ($SSH_PORT, or 22)
# can be reached; this machine always does.
#
# In a cloud, write a script of your own: whatever lists the machines you have now.
set -euo pipefail

answers() {
    [[ $1 == localhost || $1 == 127.* || $1 == "$(hostname)" ]] ||
        timeout 1 bash -c "exec 3<>'/dev/tcp/$1/${SSH_PORT:-22}'" 2>/dev/null
}

sed -E 's/#.*//; s/[[:space:]]+slots[[:space:]]*=[[:space:]]*/:/; /^[[:space:]]*$/d' \
    "${HOSTFILE:?}" | tr -d '[:blank:]' | {
    # All at once: one that does not answer must not hold up the others.
    while IFS= read -r line || [[ -n $line ]]; do
        { if answers "${line%%:*}"; then printf '%s\n' "$line"; fi; } &
    done
    wait
}
