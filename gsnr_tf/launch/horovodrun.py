"""horovodrun, with the parts replaced on which a job's output, its end and its safety
depend.

    python horovodrun.py OPTIONS OF HOROVODRUN COMMAND ...

- Output that is not UTF-8 is shown with a replacement character. Horovod stops reading
  at such a byte, so that the rank waits for ever when the pipe is full.
- A rank that is told to end gets the seconds in GSNR_TF_GRACE to do so, not 5; on other
  hosts as well, to which ssh passes no signal on (see supervise.py).
- The rendezvous server is the one of rendezvous.py.
- It starts without TensorFlow, which Horovod loads to ask how it was built.
- In an elastic job, whose ranks change, the lines of each process have a label of their
  own: its rank at the start, or the next number that no other process had. A wait for
  hosts or for a rank is told and ends (HOROVOD_ELASTIC_TIMEOUT).

Nothing of Horovod's files changes. Horovod starts a process beside each rank, which
imports this file anew: what matters there is replaced on import, the rest in `main`.
Run by its path: importing gsnr_tf would load TensorFlow.
"""

import codecs
import contextlib
import copy
import importlib
import io
import os
import re
import shlex
import sys
import threading
import time

# Python puts this folder first, whose modules have names as others might.
_FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _FOLDER]

import psutil
from horovod.runner.common.util import safe_shell_exec
from horovod.runner.common.util.timeout import TimeoutException

_LONGEST_LINE = 1 << 18  # characters
_writing = threading.Lock()  # all ranks' output goes to one pipe, by whole lines
NO_HOSTS = "Waited in vain for hosts, for"
_TOLD_AFTER = 5.0  # seconds without enough hosts
_MARGIN = 10.0  # seconds more than the supervisor beside the rank takes


def replace(module, name, new):
    """Puts `new` in the place of what a module of Horovod calls by that name."""
    if not hasattr(module, name):
        raise SystemExit(
            f"{module.__name__} has no {name}: this is not the Horovod that gsnr_tf "
            "knows (0.28.1). Install it with gsnr-tf install-horovod."
        )
    old = getattr(module, name)
    setattr(module, name, new)
    return old


def forward(source, stream, prefix, index, with_time):
    """Writes what a rank prints to `stream`, each line after `[index]<prefix>:`.

    Args:
        source: Connection to read bytes from until its end.
        stream: Text stream.
        prefix: String, "stdout" or "stderr".
        index: Int, the rank; `None` for programs that are no ranks.
        with_time: Not supported, `gsnr-tf run` does not ask for it.
    """
    start = "" if index is None else f"[{index}]<{prefix}>:"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, ended = "", False
    while not ended:
        data = os.read(source.fileno(), 1 << 16)
        ended = not data
        # A carriage return ends a line as well: that is how progress bars go on.
        *lines, rest = re.split(r"(?<=[\r\n])", rest + decoder.decode(data, final=ended))
        # The end of a line may be long in coming, or never come.
        if rest and (ended or len(rest) > _LONGEST_LINE):
            lines.append(f"{rest}\n")
            rest = ""
        try:
            with _writing:
                stream.write("".join(start + line for line in lines))
                stream.flush()
        except (OSError, ValueError):
            pass  # Nobody listens. But the rank must not wait, it may be saving.
    source.close()


def end(pid):
    """Asks the program of a rank to end, and makes it and all its descendants later.

    Runs in a thread of a process that ends when the program has.
    """
    try:
        program = psutil.Process(pid)
        program.terminate()
        time.sleep(float(os.environ.get("GSNR_TF_GRACE", 5)) + _MARGIN)
        for process in [*program.children(recursive=True), program]:
            process.kill()
    except psutil.NoSuchProcess:
        pass


def execute(command, *arguments, index=None, **options):
    # No shell in between, which would not pass a signal on.
    command = command if index is None else f"exec {command}"
    return _execute(command, *arguments, index=index, **options)


replace(safe_shell_exec, "prefix_connection", forward)
replace(safe_shell_exec, "terminate_executor_shell_and_children", end)
_execute = replace(safe_shell_exec, "execute", execute)


def replace_ssh():
    from horovod.runner import gloo_run
    from horovod.runner.common.util import env

    supervise = shlex.join([sys.executable, os.path.join(_FOLDER, "supervise.py")])
    grace = os.environ.get("GSNR_TF_GRACE", "5")

    def remote_command(command, *arguments, **options):
        """`command` is quoted, and begins the rank with `env NAME=VALUE ...`."""
        if env.is_kubeflow_mpi():  # whose program passes no input on
            return _remote_command(command, *arguments, **options)
        (command,) = shlex.split(command)
        command = shlex.quote(command.replace("; env ", "; env GSNR_TF_STDIN=1 ", 1))
        ssh = _remote_command(command, *arguments, **options)
        return f"{supervise} --ssh --grace {grace} {ssh}"

    _remote_command = replace(gloo_run, "get_remote_command", remote_command)


def replace_rendezvous():
    from horovod.runner import gloo_run
    from horovod.runner.common.util import network

    sys.path.insert(0, _FOLDER)
    rendezvous = importlib.import_module("rendezvous")
    sys.path.remove(_FOLDER)

    class Plain:
        """Stands for the module cloudpickle: dumps anything, loads plain data."""

        dumps = staticmethod(network.cloudpickle.dumps)
        loads = staticmethod(rendezvous.loads)

    def run_command(command, address, interfaces, server, elastic=False):
        port = server.listen(address)
        address = f"{address}:{port}/{server.token}"
        return _run_command(command, address, interfaces, port, elastic)

    replace(network, "cloudpickle", Plain)
    replace(gloo_run, "RendezvousServer", rendezvous.Rendezvous)
    replace(gloo_run, "create_rendezvous_handler", lambda driver: driver)
    _run_command = replace(gloo_run, "get_run_command", run_command)


class Processes:
    """The processes of a job: how their lines are labelled, how each is ended.

    In an elastic job ranks change, and a rank that died has a successor. So a process
    is known by its rank at the start if none had that number before, or by the next.
    """

    def __init__(self):
        self._used, self._ends = set(), {}
        self._lock = threading.Lock()

    def start(self, run, command, slot, events):
        """Calls `run`, Horovod's, which returns when the process has ended."""
        end = threading.Event()
        with self._lock:
            taken = slot.rank in self._used
            label = max(self._used) + 1 if taken else slot.rank
            self._used.add(label)
            self._ends[slot.hostname, slot.local_rank] = label, end
        if taken:
            say(f"A new process on {slot.hostname} begins as rank {slot.rank}: {label} |")
        # Of the slot, host and rank are looked at, the latter for the label alone.
        slot = copy.copy(slot)
        slot.rank = label
        return run(command, slot, [*(events or []), end])

    def end(self, host, local_rank):
        """Tells the newest process there to end; returns its label."""
        label, end = self._ends[host, local_rank]
        end.set()
        return label


def say(text):
    with _writing:
        print(text, flush=True)


def replace_elastic():
    from horovod.runner import gloo_run
    from horovod.runner.elastic.driver import ElasticDriver
    from horovod.runner.elastic.registration import FAILURE

    processes = Processes()

    def exec_command_fn(settings):
        run = _exec_command_fn(settings)
        return lambda *process: processes.start(run, *process)

    class Driver(ElasticDriver):
        """Says for which hosts and ranks it waits, and waits for neither for ever.

        And knows which processes there are. Horovod takes a host that failed and is
        back for one whose ranks still run, if all waited for it to come back, and the
        end of a process for that of the one which has its place now.
        """

        def __init__(self, *arguments, **options):
            self._newest = {}
            super().__init__(*arguments, **options)

        def _update_host_assignments(self, current_hosts):
            # Horovod ends all ranks of a host of which one has failed.
            failed = {host for host, _ in self._worker_registry.get(FAILURE)}
            for host in failed & self._host_assignments.keys():
                del self._host_assignments[host]
            return super()._update_host_assignments(current_hosts)

        def _start_worker_process(self, slot):
            self._newest[slot.hostname, slot.local_rank] = slot
            super()._start_worker_process(slot)

        def _handle_worker_exit(self, slot, *how):
            if self._newest[slot.hostname, slot.local_rank] is slot:
                super()._handle_worker_exit(slot, *how)

        def wait_for_available_slots(self, fewest, *arguments, **options):
            def tell():
                places = self._host_manager.current_hosts.count_available_slots()
                say(
                    f"Waiting for hosts: there is room for {places} ranks of at least "
                    f"{fewest}. The job ends if that lasts for {self._timeout} s "
                    "(HOROVOD_ELASTIC_TIMEOUT)."
                )

            with later(_TOLD_AFTER, tell):
                try:
                    return super().wait_for_available_slots(fewest, *arguments, **options)
                except TimeoutException:
                    say(f"{NO_HOSTS} {self._timeout} s.")  # launch/output.py knows it
                    raise

        def record_ready(self, host, slot):
            """Returns when all ranks are ready; one that does not come is ended."""

            def end_late():
                ready = set(self._worker_registry.get_recorded_slots())
                slots = [one for each in self.host_assignments.values() for one in each]
                for one in slots:
                    if (one.hostname, one.local_rank) not in ready:
                        label = processes.end(one.hostname, one.local_rank)
                        say(
                            f"{label} | does not meet the others, who have waited for "
                            f"{self._timeout} s (HOROVOD_ELASTIC_TIMEOUT). It is ended."
                        )

            with later(self._timeout, end_late):
                super().record_ready(host, slot)

    replace(gloo_run, "ElasticDriver", Driver)
    _exec_command_fn = replace(gloo_run, "_exec_command_fn", exec_command_fn)


@contextlib.contextmanager
def later(seconds, act):
    """Calls `act` after so long, if what is within lasts until then."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main():
    from horovod.runner import launch

    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)  # of the process itself
        stream.reconfigure(encoding="utf-8", errors="replace")
    # Horovod would load TensorFlow to ask whether it was built with Gloo, as ours always is;
    # of another build each rank says so itself.
    replace(launch, "gloo_built", lambda verbose=False: True)
    replace_ssh()
    replace_rendezvous()
    replace_elastic()
    return launch.run_commandline()


if __name__ == "__main__":
    sys.exit(main())
