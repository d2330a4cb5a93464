"""Two hosts on this machine: network namespaces with a cable between them, and sshd."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid

ADDRESSES = ("10.99.77.1", "10.99.77.2")


def possible():
    """Whether this machine can play two hosts: root on Linux, with ip and sshd."""
    return os.geteuid() == 0 and all(shutil.which(p) for p in ("ip", "ssh", "/usr/sbin/sshd"))


def _call(*command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def two_hosts(folder):
    """The start of a command that runs on the first host, and its environment.

    Keys, known hosts and settings of ssh are made in `folder` and used nowhere else.
    """
    names = [f"gsnr-{uuid.uuid4().hex[:6]}-{index}" for index in (1, 2)]
    for name in ("key", "host_key"):
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\nIdentityFile {folder}/key\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\nLogLevel ERROR\n"
    )
    (folder / "bin").mkdir()
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    ssh.chmod(0o755)
    servers = []
    try:
        for name in names:
            _call("ip", "netns", "add", name)
        ends = [end for name in names for end in ("eth0", "netns", name)]
        # Horovod wants the interface to bear the same name on all hosts.
        _call(*["ip", "link", "add"], *ends[:3], *["type", "veth", "peer"], *ends[3:])
        for name, address in zip(names, ADDRESSES):
            inside = ("ip", "-n", name)
            _call(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            _call(*inside, "link", "set", "eth0", "up")
            _call(*inside, "link", "set", "lo", "up")
            (folder / name).write_text(f"{address} {socket.gethostname()}\n127.0.0.1 localhost\n")
            # sshd wants a folder in /run, and each host is to know its own name. What
            # is mounted here is seen by nobody else.
            setting = f"mount --bind {folder / name} /etc/hosts && exec"
            run = "mount -t tmpfs tmpfs /run && mkdir /run/sshd && "
            server = f"{run}{setting} /usr/sbin/sshd -De -f {folder}/sshd_config"
            servers.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, "sh", "-c", server],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        setting = f'mount --bind {folder / names[0]} /etc/hosts && exec "$@"'
        start = ["ip", "netns", "exec", names[0], "sh", "-c", setting, "sh"]
        environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        _wait_for_ssh([*start, ssh, "-o", "StrictHostKeyChecking=no", ADDRESSES[1], "true"])
        yield start, environment
    finally:
        for server in servers:
            server.terminate()
            server.wait(10)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _wait_for_ssh(command):
    deadline = time.monotonic() + 20
    while subprocess.run(command, capture_output=True, timeout=20).returncode:
        assert time.monotonic() < deadline, "sshd does not answer"
        time.sleep(0.1)
