# shellcheck shell=bash
# The set-up that quickstart.sh, test.sh, gpu_check.sh and docs.sh share. It is sourced, not run:
#
#   source horovod_scripts/setup_env.sh
#   set_up examples auto     # extras of setup.py; auto, cpu or gpu
#
# Afterwards the environment .venv of this checkout is active. Each step leaves a
# stamp with the facts it depended on, so a second call only does what is missing.
#
# Set by this file: root, venv, python (in the environment), device (cpu or gpu). A caller
# that sets horovod_device=cpu gets a Horovod without NCCL beside a TensorFlow for GPUs.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
stamps=$venv/.gsnr_tf
log=$venv/setup.log
device=cpu
horovod_device=''

# A user's settings of pip are kept (indexes, certificates, proxies), but for
# those that would install somewhere else than in .venv.
unset PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
# These would lead the environment's Python to another one's packages.
unset PYTHONHOME PYTHONPATH
# Keras and Matplotlib make folders in the user's home, and a keras.json that is
# there may choose another backend. Both get a place in the environment instead.
export KERAS_BACKEND=tensorflow KERAS_HOME=${KERAS_HOME:-$venv/.cache/keras}
export MPLCONFIGDIR=${MPLCONFIGDIR:-$venv/.cache/matplotlib}

# The first argument is what is wrong, the others what to do about it.
stop() {
    printf '\nStopped: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

# Reads the options of its callers: sets wish (auto, cpu or gpu) and rest, the
# arguments that are not theirs. The caller has a function `usage`,
# to which the help adds what set_up reads of the environment.
# shellcheck disable=SC2034 # both are for the caller
read_options() {
    wish=auto
    while (($#)); do
        case $1 in
            --cpu) wish=cpu ;;
            --gpu) wish=gpu ;;
            -h | --help)
                usage
                cat <<END

Environment: PYTHON (the Python to make .venv with), XDG_CACHE_HOME (where the
wheel of Horovod is kept), PIP_* (settings of pip).
END
                exit 0
                ;;
            --)
                shift
                break
                ;;
            *) break ;;
        esac
        shift
    done
    rest=("$@")
}

# ------------------------------------------------------------ choosing things

# Whether $1 is a Python that we can use; if not, prints why. It is run and not
# only looked for: version managers put stand-ins on the PATH for Pythons that
# are switched off.
suits() {
    "$1" -c '
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("it is Python %d.%d" % sys.version_info[:2])
import ensurepip, venv
' 2>&1 >/dev/null </dev/null
}

choose_python() {
    local candidate why
    if [[ -n ${PYTHON:-} ]]; then
        why=$(suits "$PYTHON") || stop "PYTHON=$PYTHON cannot be used" "$why" \
            "It must run, be Python 3.10 to 3.13 and have the modules venv and ensurepip" \
            "(on Debian and Ubuntu the last two are in the package python3-venv)."
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3.10 python3 python; do
        if suits "$candidate" >/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    stop "no Python 3.10 to 3.13 with the modules venv and ensurepip was found" \
        "Debian, Ubuntu: apt-get install python3 python3-venv python3-dev" \
        "Elsewhere, or if it is not on the PATH: PYTHON=/path/to/python bash $0"
}

# For the wish $1 (auto, cpu, gpu) prints cpu or gpu.
choose_device() {
    case $1 in
        cpu | gpu) printf '%s' "$1" ;;
        auto)
            if ! nvidia-smi -L 2>/dev/null </dev/null | grep -q '^GPU'; then
                printf cpu
            elif command -v nvcc >/dev/null || [[ -x ${HOROVOD_CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
                printf gpu
            else
                printf '%s\n' "There is a GPU, but no nvcc to build Horovod with; using the CPU." \
                    "With the CUDA toolkit installed, a new run takes the GPU." >&2
                printf cpu
            fi
            ;;
    esac
}

# --------------------------------------------------------------------- stamps

fingerprint() { cksum <"$1" | tr ' ' -; }

stamped() { [[ -f $stamps/$1 && $(<"$stamps/$1") == "$2" ]]; }

stamp() {
    printf '%s' "$2" >"$stamps/.$1.new"
    mv -f "$stamps/.$1.new" "$stamps/$1"
}

# What is really in the environment: "TensorFlow's version, Horovod's version,
# gsnr_tf's folder", or nothing at all if it is broken.
look_inside() {
    "$python" - 2>/dev/null <<'PYTHON' || true
import importlib.metadata
import importlib.util
import sys

import pip

if sys.prefix == sys.base_prefix:
    sys.exit("not a virtual environment")


def version(*names):
    for name in names:
        try:
            return f"{name}-{importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            pass
    return "none"


print(
    f"{sys.version_info[0]}.{sys.version_info[1]}",
    version("tensorflow_cpu", "tensorflow"),
    version("horovod"),
    version("gsnr_tf"),
)
PYTHON
}

# Sets has_python, has_tensorflow, has_horovod and has_package.
look() {
    has_python='' has_tensorflow='' has_horovod='' has_package=''
    read -r has_python has_tensorflow has_horovod has_package <<<"$(look_inside)" || true
}

# ---------------------------------------------------------------------- steps

# The next step is about $1 and was already done.
ready() {
    step=$((step + 1))
    printf '[%d/%d] %s: ready\n' "$step" "$steps" "$1"
}

# The next step: $1 says what it does, $2 how long it takes, the others do it.
run_step() {
    local title=$1 takes=$2 started=$SECONDS log_start
    shift 2
    step=$((step + 1))
    printf '[%d/%d] %s, about %s\n' "$step" "$steps" "$title" "$takes"
    printf '\n=== %s (%s)\n' "$title" "$(date)" >>"$log"
    log_start=$(wc -c <"$log")
    if ! "$@" >>"$log" 2>&1 </dev/null; then
        explain_failure "$title" "$log_start"
    fi
    printf '      done in %d s\n' $((SECONDS - started))
}

explain_failure() {
    local title=$1 new_lines=$venv/.gsnr_tf/last_failure
    local why="See the lines above, and the log."
    # Only what this step wrote: the log has earlier runs in it, too.
    tail -c +$(($2 + 1)) "$log" >"$new_lines" 2>/dev/null || new_lines=$log
    printf '\nThe last lines of .venv/setup.log:\n' >&2
    tail -n 20 "$new_lines" | cut -c 1-200 | sed 's/^/    /' >&2
    said() { grep -qiE "$1" "$new_lines"; }
    if said 'no space left on device|disk quota exceeded'; then
        why="The disk is full. The set-up needs 2 GB in the checkout (several more for GPUs)
  and 1 GB in the folder for temporary files (TMPDIR)."
    elif said 'NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|ReadTimeout|Network is unreachable|ProxyError|Connection (refused|reset|aborted)'; then
        why="There was no connection to the Python package index. Check the network; behind
  a proxy set https_proxy, with a mirror of your own set PIP_INDEX_URL."
    elif said 'CERTIFICATE_VERIFY_FAILED'; then
        why="The package index's certificate is not trusted here. Set PIP_CERT to the file
  with your organization's certificates."
    elif said 'no matching distribution found for tensorflow'; then
        why="There is no TensorFlow for this Python ($has_python) on this machine ($(uname -sm)).
  It takes Python 3.10 to 3.13 on Linux."
    elif said 'C\+\+17 compiler|make was not found'; then
        why="Horovod is compiled on this machine; that needs a C++ compiler and make
  (Debian, Ubuntu: apt-get install g++ make)."
    elif said 'Killed|signal terminated|out of memory|cannot allocate memory'; then
        why="The machine ran out of memory. Fewer compilers at once: MAKEFLAGS=-j1 bash $0"
    fi
    stop "this step failed: $title" "$why" \
        "After that, run the same command again: it goes on from here." \
        "The whole log: $log"
}

make_environment() {
    "$1" -m venv "$venv"
}

install_package() {
    # From within, since a path with blanks cannot be a requirement of pip's.
    (cd "$root" && "$python" -m pip install --use-pep517 --editable ".[$1]")
}

install_tensorflow() {
    # The two distributions have the same files: one must go for the other.
    local other=tensorflow
    if [[ $device == gpu || $(uname -m) != x86_64 ]]; then other=tensorflow_cpu; fi
    if [[ $has_tensorflow == "$other"-* ]]; then
        "$python" -m pip uninstall --yes "$other" || return
    fi
    install_package "$device" && TF_CPP_MIN_LOG_LEVEL=3 "$python" -c 'import tensorflow'
}

install_horovod() {
    local options=()
    if [[ ${horovod_device:-$device} == gpu ]]; then options+=(--gpu); fi
    bash "$root/horovod_scripts/install_horovod.sh" ${options[@]+"${options[@]}"} "$python"
}

# --------------------------------------------------------------------- set-up

# $1: extras of setup.py, separated by commas. $2: auto, cpu or gpu.
# The steps are numbered up to 5, since the callers' own work is the fifth.
set_up() {
    # pip turns Ctrl-C into an exit code like any other, which would look like a
    # failed step. The screen is descriptor 8, as the step's own go to the log.
    trap 'printf "\nInterrupted. The same command goes on from here.\n" >&8; exit 130' INT
    # Two set-ups in one checkout would get into each other's way. A lock on a
    # file that is there anyway leaves nothing behind.
    {
        if command -v flock >/dev/null && ! flock -n 9; then
            printf 'Another set-up is at work in this checkout; waiting for it.\n'
            flock 9 || true
        fi
        set_up_locked "$@"
    } 9<"$root/setup.py" 8>&2
    trap - INT

    # What the environment's own `activate` does, but for the prompt.
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

set_up_locked() {
    local extras=$1 base='' key started=$SECONDS
    step=0 steps=5
    device=$(choose_device "$2")

    # 1. The environment. It is kept if it works, was made by us for this place,
    # and is not of another Python than the one asked for.
    if [[ -e $venv && ! -d $stamps ]]; then
        stop "there is a .venv here that this set-up did not make" \
            "Move it away first: $venv"
    fi
    look
    if [[ -n ${PYTHON:-} || -z $has_python ]] || ! stamped python "$root $has_python"; then
        base=$(choose_python)
        key="$root $("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    fi
    if [[ -n $has_python ]] && stamped python "${key:-$root $has_python}"; then
        ready "Python $has_python in .venv"
    else
        [[ -w $root ]] || stop "this folder cannot be written to: $root"
        rm -rf "$venv"
        mkdir -p "$stamps"
        : >"$log"
        printf 'What the steps print goes to .venv/setup.log\n'
        run_step "Making an environment for Python ${key##* } in .venv" "5 seconds" \
            make_environment "$base"
        look
        stamp python "$root $has_python"
    fi

    # 2. TensorFlow, which Horovod's build needs.
    local device_name=CPU
    if [[ $device == gpu ]]; then device_name=GPU; fi
    key="$device $(fingerprint "$root/setup.py")"
    if [[ $has_tensorflow != none ]] && stamped tensorflow "$key $has_tensorflow"; then
        ready "TensorFlow ${has_tensorflow#*-} ($device_name)"
    else
        run_step "Installing TensorFlow ($device_name)" "1 minute" install_tensorflow
        look
        stamp tensorflow "$key $has_tensorflow"
    fi

    # 3. Horovod, compiled for that TensorFlow or taken from the cache.
    key="${horovod_device:-$device} $has_tensorflow"
    key+=" $(fingerprint "$root/horovod_scripts/install_horovod.sh")"
    if [[ $has_horovod != none ]] && stamped horovod "$key $has_horovod"; then
        ready "Horovod ${has_horovod#*-}"
    else
        run_step "Building Horovod" "3 minutes (20 seconds if built before)" install_horovod
        look
        stamp horovod "$key $has_horovod"
    fi

    # 4. The package itself, editable, with what examples and tests need.
    key="$device $has_tensorflow $(fingerprint "$root/setup.py")"
    if [[ $has_package != none ]] && stamped "package-$extras" "$key"; then
        ready "gsnr_tf, with what is needed for: ${extras//,/, }"
    else
        run_step "Installing gsnr_tf, with what is needed for: ${extras//,/, }" "20 seconds" \
            install_package "$device,$extras"
        look
        stamp "package-$extras" "$key"
    fi
    printf 'Set-up complete after %d s\n' $((SECONDS - started))
}

# The next step is the caller's own work; $1 says what.
last_step() {
    step=$((step + 1))
    printf '[%d/%d] %s\n' "$step" "$steps" "$1"
}

# Threads and messages for TensorFlow with $1 ranks on this machine. What the
# user has set stays as it is.
share_machine() {
    local cores threads
    cores=$("$python" -c 'import os; print(len(os.sched_getaffinity(0)))')
    threads=$((cores / $1))
    ((threads > 0)) || threads=1
    # Ranks that each start a thread per core get in each other's way, the more
    # so as every collective waits for the slowest.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}
    export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$threads}
    # Horovod's operations are asynchronous and hold no thread while they wait,
    # so one would do; the second keeps Python functions in the input pipeline
    # from holding up the rest.
    export TF_NUM_INTEROP_THREADS=${TF_NUM_INTEROP_THREADS:-2}
    # Errors only: at level 1 every rank tells about its CPU's instructions.
    export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
    # A rank that waits in vain for five minutes ends the run with a message.
    export HOROVOD_STALL_SHUTDOWN_TIME_SECONDS=${HOROVOD_STALL_SHUTDOWN_TIME_SECONDS:-300}
}
