"""Horovod ranks on hosts of their own, and the settings they measure one by one.

Runs inside a sandbox. Each rank is told a setting as a line of JSON and measures it
together with the others; rank 0's answers are printed, a line of JSON each.
"""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile

from horovod.runner import gloo_run
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http.http_server import RendezvousServer

from gsnr_tf.benchmarks import hosts, sandbox


class Ranks:
    """The ranks of all hosts, started with what Horovod's launcher would tell them.

    Args:
        network: `Hosts`.
        per_host: How many ranks on each.
        arguments: Words after `python`.
    """

    def __init__(self, network, per_host, arguments):
        slots = get_host_assignments(
            parse_hosts(",".join(f"{a}:{per_host}" for a in network.addresses)),
            len(network.addresses) * per_host,
        )
        server = RendezvousServer()
        port = server.start()
        server.init(slots)
        meeting = gloo_run.create_run_env_vars(hosts.SWITCH_ADDRESS, [hosts.INTERFACE], port)
        self._logs = [tempfile.TemporaryFile("w+") for _ in slots]
        self._ranks = [
            subprocess.Popen(
                network.inside(slot.cross_rank, [sys.executable, *arguments]),
                env={**os.environ, **_words(gloo_run.create_slot_env_vars(slot)),
                     **_words(meeting), "TF_CPP_MIN_LOG_LEVEL": "2",
                     "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if slot.rank == 0 else log,
                stderr=log,
                text=True,
            )
            for slot, log in zip(slots, self._logs)
        ]  # fmt: skip

    def measure(self, setting):
        """Rank 0's answer to a setting, a dict of what JSON can hold.

        Raises:
            RuntimeError: A rank ended; the message holds the end of its log.
        """
        for rank in self._ranks:
            # One that has ended is found below, with its log.
            with contextlib.suppress(BrokenPipeError):
                rank.stdin.write(json.dumps(setting) + "\n")
                rank.stdin.flush()
        first = self._ranks[0].stdout
        while not select.select([first], [], [], 1.0)[0]:
            self._check()
        answer = first.readline()
        if not answer:
            self._ranks[0].wait()
            self._check()
        return json.loads(answer)

    def _check(self):
        for index, (rank, log) in enumerate(zip(self._ranks, self._logs)):
            if rank.poll():
                log.seek(0)
                end = "".join(log.readlines()[-40:])
                raise RuntimeError(f"rank {index} ended with code {rank.poll()}:\n{end}")

    def end(self):
        """Lets the ranks end, as they do when nothing more is asked."""
        for rank in self._ranks:
            rank.stdin.close()
        for rank in self._ranks:
            rank.wait(60)


def _words(environment):
    return {name: str(value) for name, value in environment.items()}


def main(arguments=None):
    """Measures all sizes at all rates and delays; prints a line of JSON for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--ranks-per-host", type=int, required=True)
    parser.add_argument("--rule", required=True)
    parser.add_argument("--tensors", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--elements", type=int, nargs="+", required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--delays", type=float, nargs="+", required=True)
    args = parser.parse_args(arguments)
    sandbox.end_with_parent()
    network = hosts.Hosts(args.ranks // args.ranks_per_host)
    can_delay = hosts.has_delay()
    delays = args.delays if can_delay else [0.0]
    print(json.dumps({"can_delay": can_delay}), flush=True)
    network.shape(max(args.rates))
    words = ["-m", "gsnr_tf.benchmarks.network"]
    ranks = Ranks(network, args.ranks_per_host, words)
    for elements in args.elements:
        for rate in args.rates:
            for delay in delays:
                network.shape(rate, delay)
                setting = {
                    "rule": args.rule,
                    "tensors": args.tensors,
                    "elements": elements,
                    "rounds": args.rounds,
                }
                answer = ranks.measure(setting)
                print(json.dumps({"rate": rate, "delay": delay, **answer}), flush=True)
    ranks.end()


if __name__ == "__main__":
    main()
