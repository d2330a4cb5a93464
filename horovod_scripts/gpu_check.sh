#!/usr/bin/env bash
# Checks on a GPU what other tests check on the CPU. See `--help`.
set -euo pipefail

usage() {
    cat <<END
Usage: gpu_check.sh [--cpu] [ARGUMENTS OF gsnr-tf bench step]

Makes or completes the environment in .venv, with TensorFlow for GPUs, runs the
tests in tests/gpu and \`gsnr-tf bench step\`, and prints one table: what ran,
failed or was skipped, with figures and the card's name. One GPU is enough: it
is cut into two devices, and two ranks share it. NCCL refuses that, so Horovod
is built without it, and its collectives go by way of the host.

  --cpu        rehearse: the same code on logical CPUs
  --           all that follows goes to gsnr-tf bench step
  -h, --help   print this text, and stop

Exit code: 0 if nothing failed, 1 if something did, the set-up included, and 77
if nothing was checked, since there is no GPU.
END
}

# shellcheck source=horovod_scripts/setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
read_options "$@"
set -- ${rest[@]+"${rest[@]}"}
if [[ $wish == auto ]]; then wish=gpu; fi

nothing_checked() {
    printf 'Nothing was checked: %s\n' "$1" >&2
    exit 77
}

if [[ $wish == cpu ]]; then
    card="none, a rehearsal on the CPU"
    export GSNR_TEST_DEVICE=CPU
else
    command -v nvidia-smi >/dev/null ||
        nothing_checked "nvidia-smi was not found, which comes with the driver of an NVIDIA GPU."
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null </dev/null | head -n 1) || true
    [[ -n $card ]] || nothing_checked "nvidia-smi lists no GPU."
    unset GSNR_TEST_DEVICE
fi

# Not NCCL: two ranks share the GPU.
# shellcheck disable=SC2034 # for set_up
horovod_device=cpu
set_up study,test "$wish"
share_machine 2
last_step "Checking"
cd "$root"
results=$venv/.gsnr_tf/gpu_check
rm -rf "$results"
mkdir -p "$results"
"$python" -m pytest -m gpu -o junit_family=xunit1 --junitxml "$results/tests.xml" tests/gpu </dev/null || true
# Ranks that share a GPU must not each take all of its memory.
bench=ran
TF_FORCE_GPU_ALLOW_GROWTH=true "$venv/bin/gsnr-tf" bench step "$@" </dev/null |
    tee "$results/bench.txt" || bench=failed

exec "$python" - "$results" "$card" "$bench" <<'PYTHON'
"""Prints the table of what pytest and `gsnr-tf bench step` have left in a folder."""

import re
import sys
import xml.etree.ElementTree
from pathlib import Path

folder, card, bench = Path(sys.argv[1]), *sys.argv[2:]


def tests():
    """Name, outcome and figure of each test; the reason of one that was skipped."""
    file = folder / "tests.xml"
    if not file.exists():
        yield "tests/gpu", "failed", "see above"
        return
    for case in xml.etree.ElementTree.parse(file).iter("testcase"):
        figures = [one.get("value") for one in case.iter("property")]
        skipped = [one.get("message") for one in case.iter("skipped")]
        failed = any(True for kind in ("failure", "error") for _ in case.iter(kind))
        outcome = "failed" if failed else "skipped" if skipped else "ran"
        yield case.get("name"), outcome, " ".join(skipped or figures)


def updates():
    """The same of each update that was timed."""
    text = (folder / "bench.txt").read_text()
    found = re.findall(r"^  (\S.*?) +([\d.]+) +([\d.]+)$", text.split("state MB")[0], re.M)
    for name, ms, ratio in found if bench == "ran" else ():
        yield f"update: {name}", "ran", f"{ms} ms, {ratio} of the first"
    if bench == "failed" or not found:
        yield "gsnr-tf bench step", "failed", "see above"


rows = [*tests(), *updates()]
width = max(len(name) for name, *_ in rows)
print(f"\nGPU: {card}")
for name, outcome, figure in rows:
    print(f"  {name:<{width}}  {outcome:<7}  {figure}".rstrip())
outcomes = [outcome for _, outcome, _ in rows]
told = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("ran", "failed", "skipped"))
print(told)
# A GPU that TensorFlow does not see: all tests were skipped.
ran = any(outcome != "skipped" for _, outcome, _ in tests())
sys.exit(1 if "failed" in outcomes else 0 if ran else 77)
PYTHON
