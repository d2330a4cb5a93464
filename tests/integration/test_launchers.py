"""The launchers in horovod_scripts, with stand-ins for what they would start."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
import yaml

from gsnr_tf.commands import run as command
from gsnr_tf.launch import hosts
from tests.processes import ROOT

SCRIPTS = ROOT / "horovod_scripts"
TRAIN = str(ROOT / "keras_examples" / "movielens_dlrm.py")
SECONDS = 25


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def launched(folder, script, *arguments, **environment):
    """The `Job` that a launcher asks `gsnr-tf run` for."""
    stand_in = program(folder / "gsnr-tf", f"printf '%s\\n' \"$@\" >'{folder}/asked'")
    ran = subprocess.run(
        ["bash", SCRIPTS / script, *map(str, arguments)],
        env={**os.environ, "GSNR_TF": stand_in, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=folder,
    )
    assert ran.returncode == 0, ran.stderr
    return asked((folder / "asked").read_text().splitlines())


def asked(arguments):
    assert arguments[0] == "run"
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    job = command.job(parser.parse_args(arguments[1:]))
    return job


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say():
    scripts = sorted(SCRIPTS.glob("*.sh"))
    assert len(scripts) > 5
    ran = subprocess.run(["shellcheck", "-x", "-P", ROOT, *scripts], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("name", ["run_one_host.sh", "run_hosts.sh", "run_elastic.sh"])
def test_help_fits_a_terminal_and_no_arguments_are_an_error(name):
    asked_for, bare = (
        subprocess.run(["bash", SCRIPTS / name, *rest], capture_output=True, text=True)
        for rest in (["--help"], [])
    )
    assert (asked_for.returncode, bare.returncode) == (0, 2)
    assert asked_for.stdout.startswith(f"Usage: {name} ")
    assert max(map(len, asked_for.stdout.splitlines())) <= 88


def test_one_host(tmp_path):
    program(tmp_path / "nvidia-smi", "echo GPU 0: a; echo GPU 1: b; echo GPU 2: c")
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = launched(tmp_path, "run_one_host.sh", TRAIN, "--rows", "9", PATH=path, OUTPUT="o")
    job.validate()
    assert (job.ranks, job.folder, job.command) == (3, "o", [TRAIN, "--rows", "9"])
    assert launched(tmp_path, "run_one_host.sh", TRAIN, RANKS="4").ranks == 4


def test_several_hosts(tmp_path):
    (tmp_path / "hosts").write_text("a slots=2\nb slots=3\n")
    settings = {"SSH_PORT": "2222", "SSH_IDENTITY": "/k ey", "INTERFACE": "eth1"}
    job = launched(tmp_path, "run_hosts.sh", tmp_path / "hosts", TRAIN, **settings)
    job.validate()
    assert (job.ranks, job.hosts) == (5, {"a": 2, "b": 3})
    assert (job.ssh_port, job.ssh_identity, job.interface) == (2222, "/k ey", "eth1")


def slurm(folder, gsnr_tf):
    """Folder with a stand-in for scontrol, and the environment of an allocation."""
    program(
        folder / "scontrol",
        'test "$*" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
    )
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_JOB_ID": "17",
    }


def test_slurm(tmp_path):
    job = launched(tmp_path, "run_slurm.sh", TRAIN, **slurm(tmp_path, None))
    job.validate()
    assert job.hosts == {"node1": 4, "node2": 4}
    assert (job.ranks, job.folder, job.grace) == (8, "runs/slurm-17", 90)
    # Slurm kills 120 seconds after its signal.
    assert "#SBATCH --signal=B:TERM@120\n" in (SCRIPTS / "run_slurm.sh").read_text()


@pytest.mark.parametrize(
    ("code", "settings", "requeued"),
    [(75, {"REQUEUE": "1"}, True), (75, {}, False), (1, {"REQUEUE": "1"}, False)],
)
def test_slurm_takes_a_job_back_that_has_saved(tmp_path, code, settings, requeued):
    environment = slurm(tmp_path, None)
    program(
        tmp_path / "scontrol",
        f'[ "$1" = show ] && echo node1 || echo "$@" >{tmp_path}/asked',
    )
    stand_in = program(tmp_path / "gsnr-tf", f"exit {code}")
    ran = subprocess.run(
        ["bash", SCRIPTS / "run_slurm.sh", TRAIN],
        env={**os.environ, **environment, "GSNR_TF": stand_in, **settings},
        timeout=SECONDS,
    )
    assert ran.returncode == code
    asked = tmp_path / "asked"
    assert asked.exists() == requeued
    assert not requeued or asked.read_text() == "requeue 17\n"


def test_slurm_passes_its_signal_on_and_waits_for_the_end(tmp_path):
    stand_in = program(
        tmp_path / "gsnr-tf",
        f"trap 'echo ended >>{tmp_path}/log; exit 143' TERM\n"
        f"echo $OMP_NUM_THREADS >{tmp_path}/log\nwhile :; do sleep 0.05; done",
    )
    environment = {**slurm(tmp_path, None), "GSNR_TF": stand_in}
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment
    process = subprocess.Popen(["bash", SCRIPTS / "run_slurm.sh", TRAIN], env=environment)
    log, deadline = tmp_path / "log", time.monotonic() + SECONDS
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 143
    assert log.read_text().split() == ["6", "ended"]


def test_elastic(tmp_path):
    host_file = tmp_path / "hosts"
    host_file.write_text("127.0.0.1 slots=2\n")
    job = launched(tmp_path, "run_elastic.sh", host_file, TRAIN, RANKS="2", MIN_RANKS="1")
    job.validate()
    assert (job.min_ranks, job.ranks, job.max_ranks) == (1, 2, 64)
    assert job.discovery == str(SCRIPTS / "discover_hosts.sh")
    assert (job.cooldown, job.reset_limit) == ([10, 600], 100)


def test_discovery_prints_the_hosts_that_answer(tmp_path, monkeypatch):
    """Two names of this machine, of which only the one that is told apart is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HOSTFILE", str(tmp_path / "hosts"))
        monkeypatch.setenv("SSH_PORT", str(port))
        (tmp_path / "hosts").write_text(
            "# here\nlocalhost slots = 4\n\n0.0.0.0:2 # answers\nnowhere.invalid slots=1"
        )
        script = SCRIPTS / "discover_hosts.sh"
        assert hosts.discover(script, None) == {"localhost": 4, "0.0.0.0": 2}
    assert hosts.discover(script, None) == {"localhost": 4}


# ---- Kubernetes -----------------------------------------------------------------

# The fields of an MPIJob and of what it calls a replica, in kubeflow.org/v2beta1.
FIELDS = {
    "slotsPerWorker", "runLauncherAsWorker", "launcherCreationPolicy", "sshAuthMountPath",
    "mpiImplementation", "runPolicy", "mpiReplicaSpecs",
}  # fmt: skip
RUN_POLICY = {
    "cleanPodPolicy", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit",
    "managedBy", "schedulingPolicy", "suspend",
}  # fmt: skip


@pytest.fixture
def manifest():
    return yaml.safe_load((SCRIPTS / "mpijob.yaml").read_text())


def test_the_manifest_has_the_fields_of_an_mpijob(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == (
        "kubeflow.org/v2beta1",
        "MPIJob",
    )
    spec = manifest["spec"]
    assert set(spec) <= FIELDS and set(spec["runPolicy"]) <= RUN_POLICY
    assert set(spec["mpiReplicaSpecs"]) == {"Launcher", "Worker"}
    for replica in spec["mpiReplicaSpecs"].values():
        assert set(replica) <= {"replicas", "restartPolicy", "template"}
        (container,) = replica["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
    assert spec["mpiReplicaSpecs"]["Launcher"]["replicas"] == 1


def test_the_launcher_reads_the_host_file_that_the_operator_writes(manifest, tmp_path):
    spec = manifest["spec"]
    launcher, worker = (
        spec["mpiReplicaSpecs"][name]["template"]["spec"]["containers"][0]
        for name in ("Launcher", "Worker")
    )
    # The operator starts sshd where a worker has no command.
    assert "command" not in worker and "args" not in worker
    program, *arguments = launcher["command"]
    assert program == "gsnr-tf"
    at = arguments.index("--hostfile") + 1
    assert arguments[at] == "/etc/mpi/hostfile"
    lines = [
        f"train-worker-{i}.train.default.svc slots={spec['slotsPerWorker']}"
        for i in range(spec["mpiReplicaSpecs"]["Worker"]["replicas"])
    ]
    arguments[at] = str(tmp_path / "hostfile")
    (tmp_path / "hostfile").write_text("\n".join(lines))
    arguments[-1] = TRAIN
    job = asked(arguments)
    job.validate()
    assert (job.ranks, len(job.hosts)) == (2, 2)
