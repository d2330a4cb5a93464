"""Hosts of a small cluster on one machine: network namespaces joined by a bridge.

Everything here needs the right to configure the network it runs in, and leaves it
changed: `sandbox` gives it a network of its own, which vanishes with the process.

    host 0  eth0 ──────┐                 each rank sees one interface, eth0; the link
    host 1  eth0 ───── switch            is shaped where a rank sends (its eth0) and
    host 2  eth0 ──────┘                 where the switch sends to it (the other end)
"""

import json
import subprocess
import sys

SWITCH = "switch"
SWITCH_ADDRESS = "10.77.0.254"
INTERFACE = "eth0"

# Segments are made by the device, as on any network card. The kernel still counts and
# shapes them as they would be on the wire, headers of each segment included.
_MTU = 1500
# Queued before a packet is dropped. A switch has less, a host has more.
_QUEUE_SECONDS = 0.02

# Gives the host its name, and becomes the command that follows.
_NAMED = """
import os, socket, sys
socket.sethostname(sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])
"""


def command(*words, namespace=None):
    """Runs `ip` or `tc`, in a namespace where one is named; returns what it prints.

    Raises:
        RuntimeError: It failed; the message is the command and its own message.
    """
    words = [str(word) for word in words]
    if namespace:
        words[1:1] = ["-n", namespace]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(f"`{' '.join(words)}` failed: {said[0]}")
    return done.stdout


def has_delay():
    """Whether this kernel can delay packets (netem); many small machines' cannot."""
    try:
        command("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except RuntimeError:
        return False
    command("tc", "qdisc", "del", "dev", "lo", "root")
    return True


def sent():
    """What this host has sent: bytes on the wire, and bytes handed to the link.

    The first counts the headers of every segment, the second one header for as many
    segments as the kernel hands over at once, and so is nearly what the program sent.
    """
    shaper = json.loads(command("tc", "-s", "-j", "qdisc", "show", "dev", INTERFACE))[0]
    with open(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes") as counter:
        return shaper["bytes"], int(counter.read())


class Hosts:
    """Hosts that reach each other, and this process, over shaped links.

    Args:
        number: How many, 2 to 250.

    Attributes:
        names: Of their network namespaces.
        addresses: IPv4, one for each host.
    """

    def __init__(self, number):
        if not 2 <= number <= 250:
            raise ValueError(f"A cluster has 2 to 250 hosts. Received: {number}")
        self.names = [f"host{index}" for index in range(number)]
        self.addresses = [f"10.77.0.{index + 1}" for index in range(number)]
        command("ip", "link", "set", "lo", "up")
        command("ip", "link", "add", SWITCH, "type", "bridge")
        command("ip", "addr", "add", f"{SWITCH_ADDRESS}/24", "dev", SWITCH)
        command("ip", "link", "set", SWITCH, "up")
        for index in range(number):
            self._add(index)

    def _add(self, index):
        name, port = self.names[index], _port(index)
        command("ip", "netns", "add", name)
        far = ["peer", "name", INTERFACE, "mtu", _MTU, "netns", name]
        command("ip", "link", "add", port, "mtu", _MTU, "type", "veth", *far)
        command("ip", "link", "set", port, "master", SWITCH, "up")
        address = f"{self.addresses[index]}/24"
        command("ip", "addr", "add", address, "dev", INTERFACE, namespace=name)
        command("ip", "link", "set", "lo", "up", namespace=name)
        command("ip", "link", "set", INTERFACE, "up", namespace=name)
        # The one congestion control that every namespace may choose: a default such as
        # BBR, which measures the link, would differ from machine to machine.
        choose = "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"
        command("ip", "netns", "exec", name, "sh", "-c", choose)

    def shape(self, rate, delay=0.0):
        """Limits every link, in both directions.

        Args:
            rate: Bits per second.
            delay: Seconds on the way from any host to any other; needs `has_delay`.
        """
        for index, name in enumerate(self.names):
            _limit(rate, INTERFACE, name)
            _limit(rate, _port(index))
            if delay:
                late = ["netem", "delay", f"{round(1e6 * delay)}us", "limit", 100_000]
                where = ["dev", INTERFACE, "parent", "1:1"]
                command("tc", "qdisc", "add", *where, *late, namespace=name)

    def inside(self, index, words):
        """The command that runs `words` on a host."""
        # Horovod meets the ranks at the address that their host's name stands for,
        # whichever interface it was told; an address is a name that needs no table.
        named = [sys.executable, "-c", _NAMED, self.addresses[index]]
        return [
            "ip",
            "netns",
            "exec",
            self.names[index],
            "unshare",
            "--uts",
            *named,
            *words,
        ]


def _port(index):
    return f"port{index}"


def _limit(rate, device, namespace=None):
    # Never less than two of the largest packets that the kernel hands over.
    burst = max(128 * 1024, round(rate / 8 * 0.2e-3))
    queue = burst + round(rate / 8 * _QUEUE_SECONDS)
    shaper = [
        "tbf",
        "rate",
        f"{round(rate)}bit",
        "burst",
        f"{burst}b",
        "limit",
        f"{queue}b",
    ]
    root = ["dev", device, "root", "handle", "1:"]
    command("tc", "qdisc", "replace", *root, *shaper, namespace=namespace)
