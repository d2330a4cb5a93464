#!/usr/bin/env bash
# From a fresh checkout to a trained model on two workers. See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: quickstart.sh [--cpu | --gpu] [ARGUMENTS OF THE EXAMPLE]

Makes an environment in .venv, with TensorFlow and Horovod, and trains
keras_examples/movielens_dlrm.py in it on two workers of this machine. Takes
less than ten minutes the first time; afterwards only the training takes time.
Arguments that are not listed here go to the example.

  --cpu, --gpu   for this device (otherwise: a GPU if there is one)
  --             all that follows goes to the example (-- --help: its options)
  -h, --help     print this text, and stop
END
}

# shellcheck source=horovod_scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
read_options "$@"
set -- ${rest[@]+"${rest[@]}"}

# horovodrun puts "[rank]<stream>:" before each line. All ranks of this job print
# alike, so rank 0 speaks for them, without the prefix; but what any rank writes
# to its error stream is shown, and so is what horovodrun itself has to say.
# Left out are what TensorFlow tells about itself whatever its log level is, and
# where in horovodrun's own code it noticed that a rank had failed.
readable() {
    local line rank in_traceback=no
    # Ctrl-C is for horovodrun; this stays until its last word.
    trap '' INT
    while IFS= read -r line || [[ -n $line ]]; do
        case ${line#'['*']<stderr>:'} in
            'WARNING: All log messages before absl::InitializeLog()'*) continue ;;
            I0000*'oneDNN custom operations are on.'*) continue ;;
        esac
        case $line in
            '[0]<stdout>:'*) printf '%s\n' "${line//'[0]<stdout>:'/}" ;;
            '[0]<stderr>:'*) printf '%s\n' "${line//'[0]<stderr>:'/}" >&2 ;;
            '['*']<stdout>:'*) ;;
            '['*']<stderr>:'*)
                rank=${line%%]*}
                printf 'rank %s: %s\n' "${rank#[}" "${line#*'<stderr>:'}" >&2
                ;;
            'Traceback (most recent call last):') in_traceback=yes ;;
            ' '*) [[ $in_traceback == yes ]] || printf '%s\n' "$line" ;;
            *)
                in_traceback=no
                printf '%s\n' "$line"
                ;;
        esac
    done
}

example=$root/keras_examples/movielens_dlrm.py
[[ -f $example ]] || stop "the example is missing: $example"

set_up examples "$wish"

ranks=2
share_machine "$ranks"
# NCCL refuses two ranks on one GPU.
if [[ $device == gpu ]] && (($(nvidia-smi -L 2>/dev/null | grep -c '^GPU') < ranks)); then
    printf 'There are fewer than %d GPUs: the workers use the CPU.\n' "$ranks"
    export CUDA_VISIBLE_DEVICES=''
fi

last_step "Training on $ranks workers: keras_examples/movielens_dlrm.py"
cd "$root"
status=0 interrupted=no
trap 'interrupted=yes' INT
# Without --disable-cache horovodrun would make a folder in the user's home;
# without --gloo it would start TensorFlow once more to ask whether there is MPI.
"$venv/bin/horovodrun" --disable-cache --gloo -np "$ranks" \
    "$python" keras_examples/movielens_dlrm.py "$@" 2>&1 </dev/null | readable ||
    status=${PIPESTATUS[0]}
if [[ $interrupted == yes ]]; then
    printf '\nInterrupted.\n' >&2
    exit 130
fi
if ((status != 0)); then
    printf '\nThe training failed (exit code %d). The first error above is the cause:\n' "$status" >&2
    printf 'when one worker fails, horovodrun ends the others.\n' >&2
fi
exit "$status"
