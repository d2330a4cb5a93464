#!/usr/bin/env bash
# Builds Horovod with TensorFlow support and installs it in a Python environment.
# See `--help`. Needs nothing else from this repository.
set -euo pipefail

HOROVOD=0.28.1
# Raise this when the way of building changes, so that wheels that were built
# the old way are not taken from the cache.
RECIPE=3

usage() {
    cat <<END
Usage: install_horovod.sh [OPTIONS] [ENVIRONMENT]

Builds Horovod $HOROVOD against the TensorFlow of a Python environment, installs
it there and checks that it works. ENVIRONMENT is the folder of a virtual
environment or a Python executable; without it, the active environment is used.

The wheel is kept, so the next environment of the same kind gets it in seconds.

  --gpu           build for NVIDIA GPUs (needs nvcc and NCCL)
  --source DIR    build this unpacked Horovod source; the cache is left alone
  --rebuild       build even if there is a wheel in the cache
  --print-cache   print the cache folder for this environment, and stop
  -h, --help      print this text, and stop

Environment: XDG_CACHE_HOME (where the cache goes), TMPDIR (where the build
goes), CXX, MAKEFLAGS, and with --gpu HOROVOD_CUDA_HOME, HOROVOD_NCCL_HOME and
HOROVOD_BUILD_CUDA_CC_LIST.
END
}

say() { printf '%s\n' "$*"; }

# The first argument is what is wrong, the others what to do about it.
die() {
    printf 'install_horovod: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

# ---------------------------------------------------------------- arguments

device=cpu source_dir='' environment='' rebuild=no print_cache=no
while (($#)); do
    case $1 in
        --gpu) device=gpu ;;
        --source)
            [[ -n ${2:-} ]] || die "--source needs a folder"
            source_dir=$2
            shift
            ;;
        --source=*) source_dir=${1#*=} ;;
        --rebuild) rebuild=yes ;;
        --print-cache) print_cache=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) die "unknown option $1" "See: install_horovod.sh --help" ;;
        *)
            [[ -z $environment ]] || die "more than one environment: $environment and $1"
            environment=$1
            ;;
    esac
    shift
done

environment=${environment:-${VIRTUAL_ENV:-}}
[[ -n $environment ]] || die "no Python environment is active" \
    "Activate one, or name one: install_horovod.sh path/to/venv"
if [[ -d $environment ]]; then
    python=$environment/bin/python
else
    python=$(command -v -- "$environment") || python=$environment
fi
[[ -x $python ]] || die "there is no Python at $python"
# Made absolute without following links: a virtual environment's Python is a
# link, and its place is what makes it this environment's.
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

# A user's settings of pip are kept (indexes, certificates, proxies), but for
# those that would install somewhere else than in this environment.
unset PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}

# Made empty here, so that the clean-up knows what is its own.
work=''
trap '[[ -z $work ]] || rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# No blanks in the build folder: CMake's and make's command lines are joined
# with blanks in several places.
temporary=${TMPDIR:-/tmp}
[[ $temporary != *[[:space:]]* ]] || temporary=/tmp
work=$(mktemp -d "$temporary/gsnr_tf-horovod.XXXXXX") ||
    die "cannot make a folder in $temporary" "Set TMPDIR to a folder you can write to."

# TensorFlow brings in Keras, which makes a folder in the user's home.
export KERAS_HOME=${KERAS_HOME:-$work/keras}

# ------------------------------------------------------- facts of TensorFlow

# Everything about the environment that the compiled library depends on.
if ! "$python" - >"$work/facts" 2>"$work/facts.err" <<'PYTHON'
import importlib.metadata
import os
import platform
import sys
import sysconfig

try:
    import tensorflow as tf
except ModuleNotFoundError as error:
    if error.name == "tensorflow":
        sys.exit(3)
    raise


def distribution():
    """Which of TensorFlow's distributions this is: their libraries differ."""
    for name in ("tensorflow_cpu", "tensorflow", "tf_nightly"):
        try:
            if importlib.metadata.version(name) == tf.__version__:
                return name
        except importlib.metadata.PackageNotFoundError:
            pass
    return "tensorflow"


def vector_instructions():
    """Horovod compiles for these as soon as the compiler knows them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            known = set(file.read().split())
    except OSError:
        return "generic"
    return "avx" if {"avx", "f16c", "fma"} <= known else "generic"


flags = tf.sysconfig.get_compile_flags()
abi = next((f[-1] for f in flags if "_GLIBCXX_USE_CXX11_ABI=" in f), "x")
# 'cpython-311-x86_64-linux-gnu': the Python, its kind and the machine.
python = sysconfig.get_config_var("EXT_SUFFIX").strip(".").rsplit(".", 1)[0]
libc = "".join(platform.libc_ver()) or "libc"
print(
    f"{python}_{distribution()}-{tf.__version__}"
    f"_{vector_instructions()}_cxx11abi{abi}_{libc}"
)
print(tf.__version__)
print(os.path.dirname(os.path.dirname(os.path.abspath(tf.__file__))))
print(sysconfig.get_path("scripts"))
print(tf.sysconfig.get_build_info().get("cuda_version", ""))
PYTHON
then
    if [[ -s $work/facts.err ]]; then
        tail -n 5 "$work/facts.err" >&2
        die "TensorFlow is installed but does not import (see above)" \
            "Environment: $python"
    fi
    die "there is no TensorFlow in this environment" \
        "Horovod is compiled against it, so it comes first:" \
        "'$python' -m pip install tensorflow-cpu" \
        "(or 'tensorflow[and-cuda]' for GPUs)"
fi
{
    read -r platform_key
    read -r tf_version
    read -r tf_parent
    read -r scripts_dir
    read -r tf_cuda
} <"$work/facts"

# ------------------------------------------------------------- CUDA and NCCL

kind=cpu
if [[ $device == gpu ]]; then
    [[ -n $tf_cuda ]] || die "TensorFlow $tf_version in this environment is a build without CUDA" \
        "'$python' -m pip uninstall tensorflow-cpu" \
        "'$python' -m pip install 'tensorflow[and-cuda]==$tf_version'"

    nvcc=''
    for candidate in ${HOROVOD_CUDA_HOME:+"$HOROVOD_CUDA_HOME/bin/nvcc"} \
        "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        if [[ -x $candidate ]]; then
            nvcc=$candidate
            break
        fi
    done
    [[ -n $nvcc ]] || die "nvcc, the CUDA compiler, was not found" \
        "Install the CUDA toolkit (TensorFlow $tf_version was built with CUDA $tf_cuda)," \
        "or set HOROVOD_CUDA_HOME to the folder that has bin/nvcc."
    nvcc_version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    [[ ${nvcc_version%%.*} == "${tf_cuda%%.*}" ]] ||
        die "nvcc is of CUDA $nvcc_version, TensorFlow $tf_version was built with CUDA $tf_cuda" \
            "Set HOROVOD_CUDA_HOME to a CUDA ${tf_cuda%%.*} toolkit."
    export CUDACXX=$nvcc

    # TensorFlow's own extra `and-cuda` brings NCCL with its header.
    bundled=$tf_parent/nvidia/nccl
    nccl_header=''
    for candidate in ${HOROVOD_NCCL_INCLUDE:+"$HOROVOD_NCCL_INCLUDE"} \
        ${HOROVOD_NCCL_HOME:+"$HOROVOD_NCCL_HOME/include"} \
        "$bundled/include" "$(dirname "$nvcc")/../include" /usr/include; do
        if [[ -f $candidate/nccl.h ]]; then
            nccl_header=$candidate/nccl.h
            break
        fi
    done
    [[ -n $nccl_header ]] || die "NCCL's header nccl.h was not found" \
        "'$python' -m pip install 'tensorflow[and-cuda]==$tf_version' brings it;" \
        "or set HOROVOD_NCCL_HOME to the folder that has include/nccl.h and lib/."
    nccl_version=$(sed -nE 's/^#define NCCL_(MAJOR|MINOR|PATCH) *([0-9]+).*/\2/p' \
        "$nccl_header" | paste -sd. -)
    kind=gpu-cuda$nvcc_version-nccl$nccl_version
    [[ -z ${HOROVOD_BUILD_CUDA_CC_LIST:-} ]] ||
        kind+=-cc${HOROVOD_BUILD_CUDA_CC_LIST//[^0-9]/.}
fi

# --------------------------------------------------------------------- cache

if [[ -n ${XDG_CACHE_HOME:-} ]]; then
    cache_home=$XDG_CACHE_HOME
elif [[ -n ${HOME:-} ]]; then
    cache_home=$HOME/.cache
else
    cache_home=''
fi
shelf=horovod-$HOROVOD-r${RECIPE}_${platform_key}_$kind
slot=$cache_home/gsnr_tf/wheels/$shelf
if [[ $print_cache == yes ]]; then
    say "$slot"
    exit 0
fi
# No home, or one that cannot be written to: keep the wheel in the environment.
if [[ -z $cache_home ]] || ! mkdir -p "$slot" 2>/dev/null || [[ ! -w $slot ]]; then
    slot=$(dirname "$scripts_dir")/.cache/gsnr_tf/wheels/$shelf
    mkdir -p "$slot"
fi
log=$slot/build.log

# The name of the wheel in the folder $1, or nothing.
wheel_in() {
    local file
    for file in "$1"/horovod-*.whl; do
        [[ ! -f $file ]] || printf '%s' "$file"
    done
}

# ------------------------------------------------------------------ building

# Runs a command with its output in the build log only.
logged() {
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null
}

build_failed() {
    printf '\nThe last lines of %s:\n' "$log" >&2
    tail -n 25 "$log" >&2
    die "$@" "The whole log: $log"
}

check_compiler() {
    local candidate compiler=''
    printf 'int main() { if constexpr (true) return 0; }\n' >"$work/probe.cc"
    for candidate in ${CXX:+"$CXX"} c++ g++ clang++; do
        # Not quoted: CXX may carry arguments ("ccache g++").
        # shellcheck disable=SC2086
        if $candidate -std=c++17 "$work/probe.cc" -o "$work/probe" >/dev/null 2>&1; then
            compiler=$candidate
            break
        fi
    done
    [[ -n $compiler ]] || die "there is no working C++17 compiler" \
        "Debian, Ubuntu: apt-get install g++ make" \
        "Fedora, RHEL:   dnf install gcc-c++ make" \
        "conda:          conda install gxx make"
    export CXX=$compiler
    command -v make >/dev/null || die "make was not found" \
        "Debian, Ubuntu: apt-get install make" \
        "Fedora, RHEL:   dnf install make" \
        "conda:          conda install make"
}

# The tools that Horovod's build needs are older than what people have: its
# CMake files are refused by CMake 4, its setup.py by newer setuptools. They go
# into a folder of their own, so that the environment keeps what it has.
install_build_tools() {
    [[ ! -d $work/tools ]] || return 0
    say "Getting the build tools"
    logged "$python" -m pip install --quiet --target "$work/tools" \
        'cmake<4' 'setuptools<70' wheel ||
        build_failed "the build tools could not be installed" \
            "A network connection to a Python package index is needed."
    # A link without blanks to the folder of TensorFlow, wherever that is:
    # Horovod's CMake files split TensorFlow's compiler flags at blanks.
    ln -s "$tf_parent" "$work/site"
    export PYTHONPATH=$work/tools:$work/site
    # pip's cmake first, and the environment's programs before the system's.
    export PATH=$work/tools/bin:$scripts_dir:$PATH
}

get_source() {
    if [[ -n $source_dir ]]; then
        [[ -f $source_dir/setup.py ]] || die "there is no setup.py in $source_dir"
        cp -R "$source_dir" "$work/source"
    else
        install_build_tools
        say "Downloading Horovod $HOROVOD"
        logged "$python" -m pip download --no-deps --no-binary horovod \
            --no-build-isolation --dest "$work/archive" "horovod==$HOROVOD" ||
            build_failed "Horovod's source could not be downloaded" \
                "A network connection to a Python package index is needed."
        mkdir "$work/source"
        tar -xzf "$work/archive/horovod-$HOROVOD.tar.gz" -C "$work/source" --strip-components=1
    fi
}

# xla_mpi_ops.cc includes headers that TensorFlow no longer ships. It serves
# only XLA-compiled functions on GPUs. We take this one file out of the build.
patch_source() {
    local cmake=$work/source/horovod/tensorflow/CMakeLists.txt
    local line='^[[:space:]]*list(APPEND TF_SOURCES ".*/xla_mpi_ops\.cc")[[:space:]]*$'
    local found=0
    [[ ! -f $cmake ]] || found=$(grep -c "$line" "$cmake") || true
    [[ $found == 1 ]] ||
        die "horovod/tensorflow/CMakeLists.txt does not have the one line that adds xla_mpi_ops.cc" \
            "This script knows Horovod $HOROVOD as it was published; this source differs." \
            "Nothing was built or installed."
    grep -v "$line" "$cmake" >"$cmake.new"
    mv "$cmake.new" "$cmake"
}

# In Gloo's alltoall and allgather a rank starts to send before it tells the other that
# it is ready to receive. Over TCP that word waits behind the data, so that two ranks
# send one after the other, at half the speed of the network. The two statements are
# exchanged here; neither waits for the other.
patch_gloo() {
    "$python" - "$work/source/third_party/gloo/gloo" <<'PYTHON' ||
import pathlib
import re
import sys

SEND, RECEIVE = r"(\n *(?:in|out)->send\([^;]*;)", r"(\n *out->recv\([^;]*;)"
for name, places in (("alltoallv.cc", 1), ("allgatherv.cc", 2)):
    path = pathlib.Path(sys.argv[1], name)
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    source, found = re.subn(SEND + RECEIVE, r"\2\1", source)
    if found != places:
        sys.exit(1)
    path.write_text(source, encoding="utf-8")
PYTHON
        die "Gloo's alltoallv.cc or allgatherv.cc does not send and receive where expected" \
            "This script knows Horovod $HOROVOD as it was published; this source differs." \
            "Nothing was built or installed."
}

# Horovod's controller on Gloo reserves room for the list of ranks and writes the ranks
# there, but never sets the list's length (its MPI controller does). What looks for
# stalls goes through that list, so that no rank was ever found missing, and neither the
# warning of a stall nor its limit worked.
patch_controller() {
    local controller=$work/source/horovod/common/gloo/gloo_controller.cc
    local line='^  global_ranks_\.reserve(size_);$'
    local found=0
    [[ ! -f $controller ]] || found=$(grep -c "$line" "$controller") || true
    [[ $found == 1 ]] ||
        die "horovod/common/gloo/gloo_controller.cc does not reserve its ranks where expected" \
            "This script knows Horovod $HOROVOD as it was published; this source differs." \
            "Nothing was built or installed."
    sed -i "s/$line/  global_ranks_.resize(size_);/" "$controller"
}

# As many compilers at once as there are cores, with 2 GB of memory for each.
set_jobs() {
    [[ -z ${MAKEFLAGS:-} ]] || return 0
    local jobs memory
    jobs=$("$python" -c 'import os; print(len(os.sched_getaffinity(0)))')
    memory=$(awk '/^MemAvailable/ { print int($2 / 2000000) }' /proc/meminfo 2>/dev/null) || true
    if [[ -n $memory ]] && ((memory < jobs)); then jobs=$memory; fi
    ((jobs > 0)) || jobs=1
    export MAKEFLAGS=-j$jobs
}

# NCCL from TensorFlow's extra has no libnccl.so to link with, only
# libnccl.so.2, and lies where the dynamic linker does not look.
set_up_nccl() {
    export HOROVOD_GPU_OPERATIONS=NCCL
    HOROVOD_CUDA_HOME=$(cd "$(dirname "$nvcc")/.." && pwd)
    export HOROVOD_CUDA_HOME
    if [[ $nccl_header == "$bundled/include/nccl.h" ]]; then
        mkdir "$work/nccl"
        ln -s "$bundled/lib/libnccl.so.2" "$work/nccl/libnccl.so"
        ln -s "$bundled/include" "$work/nccl/include"
        export HOROVOD_NCCL_LINK=SHARED
        export HOROVOD_NCCL_INCLUDE=$work/nccl/include
        export HOROVOD_NCCL_LIB=$work/nccl
        # Seen from site-packages/horovod/tensorflow, where the library will be.
        export LDFLAGS="${LDFLAGS:-} '-Wl,-rpath,\$ORIGIN/../../nvidia/nccl/lib'"
    fi
}

# Leaves the wheel in $work/wheels.
build_wheel() {
    : >"$log"
    check_compiler
    get_source
    patch_source
    patch_gloo
    patch_controller
    install_build_tools
    set_jobs
    export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
    # Gloo needs nothing installed, and one controller is one less to go wrong.
    export HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1
    if [[ $device == gpu ]]; then set_up_nccl; fi
    say "Compiling Horovod $HOROVOD for TensorFlow $tf_version ($kind); minutes, log in $log"
    # Without isolation, since an isolated build does not see TensorFlow and
    # then makes a Horovod without TensorFlow, silently.
    logged "$python" -m pip wheel --verbose --no-deps --no-build-isolation \
        --wheel-dir "$work/wheels" "$work/source" ||
        build_failed "Horovod did not compile"
    [[ -n $(wheel_in "$work/wheels") ]] || build_failed "the build left no wheel"
}

# -------------------------------------------------- installing and verifying

install_run_dependencies() {
    # Asked first, so that a cached wheel installs without a network.
    if ! "$python" -c '
import importlib.metadata
for name in ("cffi", "cloudpickle", "packaging", "psutil", "pyyaml"):
    importlib.metadata.version(name)
' 2>/dev/null; then
        "$python" -m pip install --quiet cffi cloudpickle packaging psutil pyyaml ||
            die "what Horovod needs at run time could not be installed"
    fi
}

install_wheel() {
    "$python" -m pip install --quiet --no-index --no-deps --force-reinstall "$1" ||
        die "the wheel could not be installed: $1"
}

# `--check-build` alone would not do: it ticks what merely imports. So a process
# starts Horovod, too, and sends a tensor through it.
verify() {
    local report wanted
    report=$("$scripts_dir/horovodrun" --check-build 2>>"$work/verify.err") || report=''
    for wanted in TensorFlow Gloo $([[ $device == cpu ]] || echo NCCL); do
        [[ $report == *"[X] $wanted"* ]] || {
            say "$report" >>"$work/verify.err"
            return 1
        }
    done
    "$python" - >>"$work/verify.err" 2>&1 <<'PYTHON'
import tensorflow as tf
import horovod.tensorflow as hvd

hvd.init()
assert hvd.size() == 1
total = hvd.allreduce(tf.constant([1.0, 2.0]), op=hvd.Sum, name="check")
assert total.numpy().tolist() == [1.0, 2.0], total
PYTHON
}

# $1 is a wheel.
install_and_verify() {
    : >"$work/verify.err"
    install_wheel "$1"
    say "Checking that it works"
    verify
}

not_working() {
    tail -n 15 "$work/verify.err" >&2
    die "Horovod was installed but does not work with TensorFlow (see above)"
}

install_run_dependencies

if [[ -n $source_dir ]]; then
    log=$work/build.log
    build_wheel
    install_and_verify "$(wheel_in "$work/wheels")" || not_working
else
    # One build at a time: a second set-up waits here and finds the wheel.
    if command -v flock >/dev/null; then
        exec 8>"$slot/lock"
        flock -n 8 || {
            say "Another set-up is building the same wheel; waiting for it"
            flock 8 || true
        }
    fi
    wheel=$(wheel_in "$slot")
    installed=no
    if [[ -n $wheel && $rebuild == no ]]; then
        say "Taking the wheel in $slot"
        if install_and_verify "$wheel"; then
            installed=yes
        else
            say "That wheel does not work here; building a new one"
        fi
    fi
    if [[ $installed == no ]]; then
        build_wheel
        wheel=$(wheel_in "$work/wheels")
        install_and_verify "$wheel" || not_working
        # Written aside and renamed, so that nobody ever sees half a wheel, and
        # only now, so that no wheel is kept that does not work.
        aside=$(mktemp "$slot/.new.XXXXXX")
        cp "$wheel" "$aside"
        chmod 644 "$aside"
        mv -f "$aside" "$slot/$(basename "$wheel")"
    fi
fi
say "Horovod $HOROVOD is installed for TensorFlow $tf_version ($kind)"
