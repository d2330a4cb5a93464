#!/usr/bin/env bash
# The API reference, made from the docstrings. See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: docs.sh [--cpu | --gpu] [FOLDER]

Makes or completes the environment in .venv, then writes the reference of the
public classes and functions into FOLDER, as HTML: begin at index.html. Without
a name the folder is build/api.

  --cpu, --gpu   for this device (otherwise: a GPU if there is one)
  -h, --help     print this text, and stop
END
}

# shellcheck source=horovod_scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
read_options "$@"
folder=$(realpath -m "${rest[0]:-$root/build/api}")

cd "$root"
set_up docs "$wish"
last_step "Writing the reference"
export KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=
# What gsnr_tf itself holds pdoc finds by its __all__.
"$python" -m pdoc --docformat google --no-show-source --output-directory "$folder" \
    gsnr_tf gsnr_tf.layers gsnr_tf.schedules
printf 'Open %s\n' "$folder/index.html"
