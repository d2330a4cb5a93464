"""Runs a command as long as somebody listens to what it prints.

    python supervise.py [--grace SECONDS] [--rank [--alone] | --ssh] COMMAND ...

Stands beside every rank on its host, and beside horovodrun. An ssh connection that
ends takes nothing with it: the command at its far end goes on, and so would ranks
whose job was stopped. But its output then leads nowhere, which this sees at once.

With --rank it also stands between the rank and its listener. A rank whose listener has
gone can still print, and so end in good order; a process that the rank left behind
cannot keep the job waiting by holding its output open. When the rank has ended, one
line on the error stream reports how: `REPORT` and a JSON object with its exit `code`,
the `time` in seconds since 1970, whether it was told to end (`ended`), and the `error`
or the leave that it recorded in its error file (gsnr_tf/comm/error_file.py), or null.

With --alone the rank is the only one, and there is no horovodrun: its lines begin here with
`[0]<stdout>:` or `[0]<stderr>:`, as horovodrun begins them.

With --ssh the command is the ssh that starts a rank on another host. It passes no
signal on; so when it is to end, its standard input is closed, at which the supervisor at
the far end, where GSNR_TF_STDIN is set, ends the rank as if the signal had come there.
The connection stays until the rank has ended, for what it prints and returns.

A file that needs nothing but Python, and is run by its path: importing gsnr_tf would
load TensorFlow once more for each rank.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

REPORT = "::gsnr_tf:: rank ended: "
GRACE = 10.0  # seconds from asking a command to end to making it end
_SSH_SECONDS = 5.0  # more than that for what comes through ssh
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 18  # bytes, where lines are given a start
_PR_SET_PDEATHSIG = 1


def share_of_cores(environment):
    """Variables that make a rank use its share of this host's cores, unless set.

    Ranks that each start a thread per core get in each other's way, the more so as
    every collective waits for the slowest.
    """
    threads = len(os.sched_getaffinity(0)) // int(environment["HOROVOD_LOCAL_SIZE"])
    defaults = {
        "OMP_NUM_THREADS": max(1, threads),
        "TF_NUM_INTRAOP_THREADS": max(1, threads),
        # Horovod's operations hold no thread while they wait, so one would do; the
        # second keeps Python functions in the input pipeline from holding up the rest.
        "TF_NUM_INTEROP_THREADS": 2,
    }
    return {k: str(v) for k, v in defaults.items() if k not in environment}


# Both streams of a rank that is alone lead to one pipe.
_writing = threading.Lock()


class _Pump(threading.Thread):
    """Passes on what the command prints, byte by byte as it comes.

    Args:
        source: File descriptor to read from until its end.
        target: File descriptor.
        start: Bytes that each line is to begin with; where there are any, lines are
            passed on when they are whole.

    Attributes:
        at_line_start: Whether the last byte passed on was a line feed, or none was.
    """

    def __init__(self, source, target, start=b""):
        super().__init__(daemon=True)
        self.at_line_start = True
        self._source, self._target = source, target
        self._start, self._rest = start, b""
        self._ended, self._end = os.pipe()
        os.set_blocking(source, False)

    def run(self):
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        poller.register(self._ended, select.POLLIN)
        while True:
            ready = [number for number, _ in poller.poll()]
            try:
                data = os.read(self._source, _CHUNK)
            except BlockingIOError:
                if self._ended in ready:
                    return  # what is left behind holds the pipe, and does not print
                continue
            if not data:
                return
            self.at_line_start = data.endswith(b"\n")
            self.write(self._whole_lines(data) if self._start else data)

    def _whole_lines(self, data):
        """What can be passed on with its start; a carriage return ends a line, too."""
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b""
        if not lines[-1].endswith((b"\n", b"\r")):
            self._rest = lines.pop()
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest + b"\n")
            self._rest = b""
        return b"".join(self._start + line for line in lines)

    def write(self, data):
        """Writes all of it; drops it where nobody listens any more."""
        try:
            with _writing:
                while data:
                    data = data[os.write(self._target, data) :]
        except OSError:
            pass

    def finish(self):
        """Returns when all that the command has printed is passed on."""
        os.write(self._end, b"x")
        self.join()
        if self._rest:
            self.write(self._start + self._rest + b"\n")
            self.at_line_start = True


class _Command:
    """The command, in a process group of its own, which can be ended as one."""

    def __init__(self, arguments, environment, grace, **pipes):
        self.ended = False
        self._grace = grace
        self.process = subprocess.Popen(
            arguments,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            **pipes,
        )

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, *_):
        """Asks the command and its descendants to end, and makes them later."""
        if not self.ended:
            self.ended = True
            threading.Thread(target=self._end, daemon=True).start()

    def _end(self):
        if self.process.stdin:
            self.process.stdin.close()
        else:
            self.signal(signal.SIGTERM)
        try:
            self.process.wait(self._grace)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)

    def end_when_unheard(self):
        poller = select.poll()
        # An error or a hang-up, always reported.
        poller.register(sys.stdout.fileno(), 0)
        poller.poll()
        self.end()

    def end_at_end_of_input(self):
        while os.read(0, _CHUNK):
            pass
        self.end()


def _die_with_parent():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _run(arguments, environment, grace, **pipes):
    """The command, started and watched."""
    command = _Command(arguments, environment, grace, **pipes)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, command.end)
    threading.Thread(target=command.end_when_unheard, daemon=True).start()
    return command


def _wait(command):
    """The exit code of the command, of which nothing is left; 128 + signal."""
    code = command.process.wait()
    # What the command has started and not ended itself.
    command.signal(signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _run_rank(arguments, grace, alone):
    environment = dict(os.environ)
    if "HOROVOD_LOCAL_SIZE" in environment or alone:
        environment.update(share_of_cores({"HOROVOD_LOCAL_SIZE": "1", **environment}))
    with tempfile.TemporaryDirectory(prefix="gsnr_tf-") as folder:
        error_file = os.path.join(folder, "error.json")
        environment["GSNR_TF_ERROR_FILE"] = error_file
        through_ssh = environment.pop("GSNR_TF_STDIN", None)
        command = _run(
            arguments,
            environment,
            grace,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if through_ssh:
            threading.Thread(target=command.end_at_end_of_input, daemon=True).start()
        starts = (b"[0]<stdout>:", b"[0]<stderr>:") if alone else (b"", b"")
        sources = command.process.stdout, command.process.stderr
        pumps = [
            _Pump(source.fileno(), at, start)
            for at, (source, start) in enumerate(zip(sources, starts), 1)
        ]
        for pump in pumps:
            pump.start()
        code = _wait(command)
        report = {"code": code, "time": time.time(), "ended": command.ended}
        report["error"] = _read(error_file)
        for pump in pumps:
            pump.finish()
    start = b"" if pumps[1].at_line_start else b"\n"
    pumps[1].write(start + starts[1] + f"{REPORT}{json.dumps(report)}\n".encode())
    return code


def main(arguments):
    """Runs the command; returns its exit code, 128 + signal where one ended it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, default=GRACE)
    parser.add_argument("--rank", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--ssh", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.rank:
        return _run_rank(options.command, options.grace, options.alone)
    if options.ssh:
        grace = options.grace + _SSH_SECONDS
        return _wait(_run(options.command, dict(os.environ), grace, stdin=subprocess.PIPE))
    return _wait(_run(options.command, dict(os.environ), options.grace))


if __name__ == "__main__":
    # Not sys.exit: a thread that still waits for the grace to end must not hold the
    # exit up.
    os._exit(main(sys.argv[1:]))
