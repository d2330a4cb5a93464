#!/usr/bin/env bash
# Runs the tests in an environment of their own. See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: test.sh [--cpu | --gpu] [--lint | --smoke | --slow] [PYTEST'S ARGUMENTS]

Makes or completes the environment in .venv, then runs tests in it: all but the
slow ones, or those that the arguments name. The exit code is pytest's.

  test.sh                       what should pass before a change is handed on
  test.sh -k lamb tests/unit    the unit tests that have lamb in their name
  test.sh -x --durations=10     up to the first failure

  --cpu, --gpu   for this device (otherwise: a GPU if there is one)
  --lint         no tests: format, lint and types of the sources
  --smoke        the tests marked smoke: the core, in less than a minute
  --slow         the tests marked slow: real models, studies, elastic jobs
  --             all that follows goes to pytest (-- --help: its options)
  -h, --help     print this text, and stop
END
}

# shellcheck source=horovod_scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
read_options "$@"
set -- ${rest[@]+"${rest[@]}"}

tier=default
case ${1:-} in
    --lint | --smoke | --slow)
        tier=${1#--}
        shift
        ;;
esac

# Whether the arguments of pytest name a file or folder to test. The value of an
# option ("-k tests") is none.
name_tests() {
    local argument after_option=no
    for argument in "$@"; do
        if [[ $after_option == yes ]]; then
            after_option=no
        elif [[ $argument == -[kmcpnWo] ]]; then
            after_option=yes
        elif [[ $argument != -* && -e ${argument%%::*} ]]; then
            return 0
        fi
    done
    return 1
}

cd "$root"
if ! name_tests "$@"; then
    if [[ ! -d tests ]]; then
        printf 'There are no tests in %s\n' "$root/tests" >&2
        exit 5 # as pytest does when it finds none
    fi
    # What the user marks out or names is run, slow or not.
    case $tier in
        default) set -- -m "not slow" "$@" ;;
        smoke | slow) set -- -m "$tier" "$@" ;;
    esac
    set -- "$@" tests
fi

set_up study,test "$wish"
if [[ $tier == lint ]]; then
    last_step "Looking at the sources"
    ruff format --check .
    ruff check .
    exec mypy
fi
# The tests start jobs of two workers, and some of four.
share_machine 2
last_step "Running the tests"
# Two files at a time: many tests wait for processes that they have started.
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" </dev/null
