"""Starts ranks by horovodrun, and sees to it that all of them end."""

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from gsnr_tf.launch import check, hosts, supervise
from gsnr_tf.launch.hosts import CannotStart
from gsnr_tf.launch.output import Output

_GRACE = 30.0  # seconds that ranks have to end in good order
_HOROVODRUN = str(Path(__file__).with_name("horovodrun.py"))
_NO_COMMIT = (
    "All ranks are gone, and since this start there was no commit on disk to go on from "
    "(gsnr_tf.ElasticState(model, folder=...) saves them)."
)
# Seconds more than that until horovodrun is ended, and what stands beside it. Each waits
# for the one before, which in most cases has ended long before.
_HOROVODRUN_SECONDS, _OUR_SECONDS = 20.0, 25.0


@dataclasses.dataclass(kw_only=True)
class Job:
    """What to run, and where.

    Attributes:
        command: List of strings, what follows `python`: a script or `-m` and a module,
            then its arguments.
        ranks: Int, how many; `None` takes all slots of the hosts.
        hosts: Dict of hosts and how many ranks each has room for; `None` is here.
        min_ranks, max_ranks: Ints, between which an elastic job goes on.
        discovery: Path of a program that prints the hosts there are, for elastic jobs.
        slots: Int, ranks for hosts that the program prints without a number.
        reset_limit: Int, how often an elastic job may change before it gives up.
        cooldown: Two ints, seconds until a host that failed may come back.
        ssh_port, ssh_identity: What ssh is told with -p and -i.
        interface: Name of the network interface, where Horovod shall not search.
        folder: Where to save each rank's output.
        only: The one rank whose output to show.
        grace: Float, seconds that ranks have from being told to end to being ended.
        max_restarts: Int, how often the job starts again when it fails, or is preempted
            while this process is not.
        environment: Dict of variables that ranks have besides those of this process.
        quiet: Whether nothing is shown.
        failure: String, why the job failed; "" where it did not.
    """

    command: list
    ranks: int | None = None
    hosts: dict | None = None
    min_ranks: int | None = None
    max_ranks: int | None = None
    discovery: str | None = None
    slots: int | None = None
    reset_limit: int | None = None
    cooldown: list | None = None
    ssh_port: int | None = None
    ssh_identity: str | None = None
    interface: str | None = None
    folder: str | None = None
    only: int | None = None
    grace: float = _GRACE
    max_restarts: int = 0
    environment: dict | None = None
    quiet: bool = False
    failure: str = dataclasses.field(default="", init=False)
    _running: "_Running | None" = dataclasses.field(default=None, init=False, repr=False)
    _stopped: bool = dataclasses.field(default=False, init=False, repr=False)

    def validate(self):
        """Raises `CannotStart` for what cannot be; fills in `ranks`."""
        for name in ("ranks", "min_ranks", "max_ranks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CannotStart(f"A job has 1 rank or more. Received: {name}={value}")
        if self.hosts is None and (self.ranks or 0) > hosts.MOST_SLOTS:
            raise CannotStart(
                f"One host takes {hosts.MOST_SLOTS:,} ranks at most. Received: ranks={self.ranks}"
            )
        if not 0 <= self.grace < float("inf"):
            raise CannotStart(
                f"Ranks have 0 seconds or more to end in good order. Received: grace={self.grace}"
            )
        if self.max_restarts < 0:
            raise CannotStart(
                f"A job starts again 0 times or more. Received: max_restarts={self.max_restarts}"
            )
        if self.discovery:
            self._validate_elastic()
        elif self.min_ranks or self.max_ranks:
            raise CannotStart(
                "An elastic job must know which hosts there are: add "
                "--host-discovery-script. Received: a smallest or largest number of "
                "ranks without it."
            )
        elif self.hosts is None and self.ranks is None:
            raise CannotStart("How many ranks? Say --np 2, or name --hosts h1:4,h2:4.")
        if self.hosts is not None:
            room = sum(self.hosts.values())
            self.ranks = self.ranks or room
            if self.ranks > room:
                raise CannotStart(f"{self.ranks} ranks do not fit: the hosts have room for {room}.")
        script = Path(self.command[0])
        if self.command[0] != "-m" and not script.is_file():
            hint = ""
            if script.is_dir():
                raise CannotStart(f"{script} is a folder. Name a script in it.")
            if script.name.startswith("-"):
                hint = " Options of gsnr-tf come before it: `gsnr-tf run --help` lists them."
            if script.name.startswith("python"):
                hint = " Leave python out: the ranks run by the Python of gsnr-tf."
            raise CannotStart(f"There is no script {script} here.{hint}")

    def _validate_elastic(self):
        if self.hosts is not None:
            raise CannotStart(
                "An elastic job takes its hosts from the discovery script alone. "
                "Received: --host-discovery-script and hosts."
            )
        self.ranks = self.ranks or self.min_ranks
        if self.ranks is None:
            raise CannotStart("How many ranks shall an elastic job start with? Say --np 2.")
        low, high = self.min_ranks or self.ranks, self.max_ranks or self.ranks
        if not low <= self.ranks <= high:
            raise CannotStart(
                "An elastic job starts with a number from --min-np to --max-np. "
                f"Received: --min-np {low} --np {self.ranks} --max-np {high}."
            )

    def check(self):
        """Raises `CannotStart` where a host cannot take part."""
        known = self.hosts
        if self.discovery:
            known = hosts.discover(self.discovery, self.slots)
        paths = [supervise.__file__]
        if self.command[0] != "-m":
            paths.append(str(Path(self.command[0]).resolve()))
        names = list(known) if known else ["localhost"]
        check.check(names, paths, self.ssh_port, self.ssh_identity)

    @property
    def alone(self):
        """Whether it is one process here, which needs no Horovod."""
        return self.ranks == 1 and self.hosts is None and not self.discovery

    def _process(self):
        """The command that starts the one process of a job that is alone."""
        options = ["--rank", "--alone", "--grace", str(self.grace)]
        return [
            sys.executable, supervise.__file__, *options, sys.executable, *self.command
        ]  # fmt: skip

    def horovodrun(self, again=False):
        """The command that starts the ranks; `again`, an elastic job with fewer."""
        # --gloo: TensorFlow is not loaded once more to ask whether there is MPI.
        # --disable-cache: nothing in the home folder, and no outdated check.
        made = [sys.executable, _HOROVODRUN, "--gloo", "--disable-cache"]
        ranks = self.min_ranks if again and self.min_ranks else self.ranks
        made += ["-np", str(ranks)]
        if self.hosts is not None:
            made += ["-H", ",".join(f"{host}:{n}" for host, n in self.hosts.items())]
        if self.discovery:
            made += ["--host-discovery-script", str(Path(self.discovery).resolve())]
            made += ["--min-np", str(self.min_ranks or self.ranks)]
            made += ["--max-np", str(self.max_ranks or self.ranks)]
        if self.cooldown:
            made += ["--blacklist-cooldown-range", *map(str, self.cooldown)]
        for option, value in {
            "--slots-per-host": self.slots,
            "--reset-limit": self.reset_limit,
            "--ssh-port": self.ssh_port,
            "--ssh-identity-file": self.ssh_identity,
            "--network-interfaces": self.interface,
        }.items():
            if value is not None:
                made += [option, str(value)]
        return [
            *made,
            sys.executable,
            supervise.__file__,
            "--rank",
            "--grace",
            str(self.grace),
            sys.executable,
            *self.command,
        ]

    def run(self):
        """Runs the job to its end; returns 0, or what the failed rank returned.

        Ctrl-C and SIGTERM tell all ranks to end, which have `grace` seconds for it. So
        does the end of this process, whatever ends it. Where ranks have saved then,
        the exit code is 75, `os.EX_TEMPFAIL`.

        Raises:
            CannotStart: See `validate` and `check`.
        """
        self.validate()
        if not self.alone:
            if importlib.util.find_spec("horovod") is None:
                raise CannotStart(
                    f"There is no Horovod in {sys.prefix}, which {self.ranks} ranks need. "
                    "Install it with `gsnr-tf install-horovod`."
                )
            self.check()
        self._make_folder()
        restarts = asked_for = 0
        while True:
            code, stopped, commit = self._run_once(restarts)
            if code == 0 or stopped:
                return code
            restarts += 1
            if commit:
                why = f", from the last commit on disk, {commit}"
            elif asked_for < self.max_restarts:
                asked_for += 1
                why = f", {asked_for} of {self.max_restarts}"
            else:
                return code
            self._tell(f"Starts again{why}.\n")

    def _make_folder(self):
        """Makes the folder for the ranks' output; raises `CannotStart` where it cannot be."""
        if not self.folder:
            return
        try:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            if isinstance(error, (FileExistsError, NotADirectoryError)):
                why = "there is a file of that name on the way"
            raise CannotStart(
                f"The output cannot be saved in {str(self.folder)!r}: {why}. Name another folder"
                " with --output-dir."
            ) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise CannotStart(f"Nothing may be written into the folder {self.folder}.")

    def stop(self):
        """Ends the job as SIGTERM would, from another thread than the one in `run`."""
        self._stopped = True
        if self._running is not None:
            self._running.stop()

    def _tell(self, text):
        if not self.quiet:
            print(text, end="", file=sys.stderr, flush=True)

    def _run_once(self, restarts):
        """Runs the job to the end of all its ranks.

        Returns:
            `(code, stopped, commit)`: the exit code; whether a signal to this process
            has stopped the job; where an elastic job can go on from by itself, the path
            of the commit that it has saved since it started, else `None`. Without a new
            commit it would fail again where it failed before.
        """
        ranks = self.max_ranks or self.ranks
        output = Output(
            ranks,
            self.folder,
            self.only,
            append=restarts > 0,
            quiet=self.quiet,
            elastic=bool(self.discovery),
        )
        command = self._process() if self.alone else self.horovodrun(restarts > 0)
        variables = {**(self.environment or {}), "GSNR_TF_RESTARTS": str(restarts)}
        with _Running(command, self.grace, variables, self._tell) as running:
            self._running = running
            if self._stopped:
                running.stop()
            for line in running.lines():
                output.take(line)
            code = running.wait()
        output.close()
        stopped = bool(running.received) or self._stopped
        if output.preempted():
            told = " Start the same command to go on." if stopped else ""
            self._tell(f"\nThe ranks were told to end, and have saved.{told}\n")
            return os.EX_TEMPFAIL, stopped, output.commit
        if stopped:
            number = running.received or signal.SIGTERM
            self._tell(f"\nStopped by signal {number:d}.\n")
            return 128 + number, stopped, None
        if code:
            self.failure = output.explanation()
            self._tell(f"\n{self.failure}")
            if self.discovery and not output.commit:
                self._tell(f"{_NO_COMMIT}\n")
            # Who limits how often ranks change, or waits for hosts, wants an end of it.
            ends = self.reset_limit is not None or output.no_hosts
            commit = None if ends else output.commit
            return output.exit_code() or code, stopped, commit
        return 0, stopped, None


class _Running:
    """A command under supervision, which ends with this process at the latest.

    Args:
        command: List of strings.
        grace: Float, seconds that ranks have to end in good order.
        variables: Dict, of the environment, besides those of this process.
        tell: Function that is given what people should read.

    Attributes:
        received: Number of the signal that told this process to stop, or `None`.
    """

    def __init__(self, command, grace, variables, tell):
        self.received = None
        self._grace, self._tell = grace, tell
        beside = [supervise.__file__, "--grace", str(grace + _HOROVODRUN_SECONDS)]
        self._process = subprocess.Popen(
            [sys.executable, *beside, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            # Errors only: at level 1 every rank tells about its CPU's instructions.
            env={
                "TF_CPP_MIN_LOG_LEVEL": "2",
                **os.environ,
                **variables,
                "GSNR_TF_GRACE": str(grace),
            },
            # Ctrl-C is for this process, which then ends the others in good order.
            start_new_session=True,
        )

        assert self._process.stdout is not None
        self._output = self._process.stdout

    def __enter__(self):
        # Outside of the main thread signals are somebody else's.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._stop)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            }
        else:
            self._handlers = {}
        return self

    def _stop(self, number, _):
        if self.received is None:
            self._tell(f"\nEnding the ranks, which have {self._grace:g} seconds for it...\n")
            self.stop()
        self.received = number

    def stop(self):
        """Tells the ranks to end, and makes sure that they do."""
        self._process.terminate()
        timer = threading.Timer(self._grace + _OUR_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()

    def lines(self):
        yield from self._output

    def wait(self):
        return self._process.wait()

    def __exit__(self, *_):
        # Closed before the wait: who has no listener ends.
        self._output.close()
        self._process.terminate()
        self._process.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
