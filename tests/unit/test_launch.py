"""What `gsnr-tf run` makes of its arguments, of hosts, and of what ranks print."""

import argparse
import contextlib
import io
import json
import os
import signal
import sys

import pytest

from gsnr_tf.commands import run as command
from gsnr_tf.launch import CannotStart, check, environment, hosts, supervise
from gsnr_tf.launch.output import Output, last_traceback, meaning
from tests.processes import ROOT


def test_hosts():
    assert hosts.parse("a:4,b.example:2") == {"a": 4, "b.example": 2}
    assert list(hosts.parse("z:1,a:1")) == ["z", "a"]


@pytest.mark.parametrize("text", ["a", "a:0", "a:-1", "a:two", "", "a:1,,b:1", "a b:1", "a:1,a:2"])
def test_hosts_that_cannot_be(text):
    with pytest.raises(CannotStart):
        hosts.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ann@node1:2", "`Host node1` and `User ann`, and here node1:2"),
        ("[::1]:2", "Write a name of the host, or its IPv4 address"),
        ("fe80::1", "is an IPv6 address"),
        ("a:999999999999", "from 1 to 1,024. Received: '999999999999'"),
        ("a:1025", "from 1 to 1,024"),
        ("a:" + "9" * 5000, "9{40}…"),
        ("a:²", "Received: '²'"),
    ],
)
def test_hosts_that_horovod_cannot_take_say_what_to_write(text, says):
    with pytest.raises(CannotStart, match=says):
        hosts.parse(text)


def test_host_files_of_every_dialect(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(
        "# ours\nnode1 slots=4\n\nnode2:2  # two GPUs\n  node3\tslots = 8 max_slots=8\n"
    )
    assert hosts.parse_file(path) == {"node1": 4, "node2": 2, "node3": 8}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no host"),
        ("node1 slots=4\nnode2\n", "Line 2 of .* does not say how many ranks node2"),
        ("node1 slots=none\n", "Line 1 of .*Received: 'none'"),
        ("node1 cores=4\n", "Line 1"),
        ("node1:1\nnode1:1\n", "node1 is named twice"),
    ],
)
def test_host_files_that_cannot_be(tmp_path, text, says):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(CannotStart, match=says):
        hosts.parse_file(path)
    with pytest.raises(CannotStart, match="cannot be read: No such file"):
        hosts.parse_file(tmp_path / "nowhere")


def program(path, text, mode=0o755):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_discovery(tmp_path):
    script = program(tmp_path / "some", "#!/bin/sh\necho a:2\necho\necho b\n")
    assert hosts.discover(script, 3) == {"a": 2, "b": 3}
    with pytest.raises(CannotStart, match="room for"):
        hosts.discover(script, None)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("#!/bin/sh\necho no cloud >&2; exit 4\n", 0o755, "exit code 4:\nno cloud"),
        ("#!/bin/sh\n", 0o644, "cannot be run: Permission denied"),
    ],
)
def test_discovery_that_fails(tmp_path, text, mode, says):
    with pytest.raises(CannotStart, match=says):
        hosts.discover(program(tmp_path / "script", text, mode), 1)


# ---- jobs -----------------------------------------------------------------------


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.job(parser.parse_args([str(a) for a in arguments]))


SCRIPT = ROOT / "keras_examples" / "movielens_dlrm.py"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Which script"),
        ([SCRIPT], "How many ranks"),
        (["--np", 0, SCRIPT], "Received: ranks=0"),
        (["--np", 2, "nowhere.py"], "no script nowhere.py"),
        (["--np", 2, "python", SCRIPT], "Leave python out"),
        (
            ["--np", 5, "--hosts", "a:2,b:2", SCRIPT],
            "5 ranks do not fit: .* room for 4",
        ),
        (["--np", 2, "--min-np", 1, SCRIPT], "--host-discovery-script"),
        (["--host-discovery-script", "x", SCRIPT], "Say --np 2"),
        (
            ["--np", 2, "--min-np", 3, "--host-discovery-script", "x", SCRIPT],
            "--min-np 3 --np 2",
        ),
        (
            ["--np", 9, "--max-np", 8, "--host-discovery-script", "x", SCRIPT],
            "--max-np 8",
        ),
    ],
)
def test_jobs_that_cannot_be(arguments, says):
    with pytest.raises(CannotStart, match=says):
        parsed(*arguments).validate()


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        (["-np", "4"], "--np 4"),
        (["-n", "4"], "--np 4"),
        (["--num_gpus", "8"], "--np 8"),
        (["--num_gpus=8"], "--np 8"),
        (["--nproc_per_node", "2"], "--np 2"),
        (["--nproc-per-node=2"], "--np 2"),
        (["-H", "a:2"], "--hosts h1:4,h2:4"),
    ],
)
def test_options_of_other_launchers_name_ours(option, ours, capsys):
    with pytest.raises(SystemExit):
        parsed(*option, SCRIPT)
    assert f"is {ours.split()[0]} here: gsnr-tf run {ours} train.py" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["two", "1.5", "", "9" * 5000])
def test_a_number_of_ranks_is_a_number(text, capsys):
    with pytest.raises(SystemExit):
        parsed("--np", text, SCRIPT)
    told = capsys.readouterr().err
    assert "is no number of ranks, and not auto" in told and len(told) < 3000


def test_auto_is_a_rank_for_each_gpu_or_core(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,5")
    assert parsed("--np", "auto", SCRIPT).ranks == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert parsed("--np", "auto", SCRIPT).ranks == len(os.sched_getaffinity(0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert parsed("--np", "auto", SCRIPT).ranks == len(os.sched_getaffinity(0))


def test_a_leading_double_dash_is_passed_over():
    job = parsed("--np", 2, "--", SCRIPT, "--", "-x")
    assert job.command == [str(SCRIPT), "--", "-x"]


def test_folders_that_cannot_be_are_told_in_our_words(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        job = parsed("--np", 1, "--output-dir", folder, SCRIPT)
        with pytest.raises(CannotStart, match="a file of that name on the way"):
            job.run()
    with pytest.raises(CannotStart, match="null byte"):
        parsed("--np", 1, "--output-dir", "a\0b", SCRIPT).run()
    with pytest.raises(CannotStart, match="is a folder"):
        parsed("--np", 1, tmp_path).validate()


def test_one_host_takes_a_bounded_number_of_ranks():
    with pytest.raises(CannotStart, match="1,024 ranks at most. Received: ranks=2000"):
        parsed("--np", 2000, SCRIPT).validate()


def test_names_in_brackets_are_shown_as_they_are():
    told = check.table({"[fold1]": {"Python": "[3]"}})
    assert "[fold1]" in told and "[3]" in told


def test_errors_are_printed_and_nothing_starts(capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["--np", "0", str(SCRIPT)])) == 2
    assert capsys.readouterr().err == "A job has 1 rank or more. Received: ranks=0\n"


def horovodrun(*arguments):
    """Options of horovodrun, and what Python is to run."""
    job = parsed(*arguments)
    job.validate()
    line = job.horovodrun()
    assert line[0] == sys.executable and line[1].endswith("horovodrun.py")
    script = line.index(sys.executable, 1)
    assert line[script + 2 : script + 5] == ["--rank", "--grace", "30.0"]
    return line[2:script], line[script + 6 :]


def test_options_reach_horovodrun_and_arguments_the_script():
    options, run = horovodrun("--hosts", "a:4,b:4", "--ssh-port", 2222, SCRIPT, "--np", 9)
    assert options[:4] == ["--gloo", "--disable-cache", "-np", "8"]
    assert options[4:] == ["-H", "a:4,b:4", "--ssh-port", "2222"]
    assert run == [str(SCRIPT), "--np", "9"]
    assert horovodrun("--np", 2, "-m", "some.module", "-x")[1] == [
        "-m",
        "some.module",
        "-x",
    ]


def test_an_elastic_job_keeps_its_number_of_ranks_unless_told():
    script = ["--host-discovery-script", "find"]
    options, _ = horovodrun("--np", 2, *script, "--slots-per-host", 4, SCRIPT)
    pairs = dict(zip(options[2::2], options[3::2]))
    assert pairs["--min-np"] == pairs["--max-np"] == pairs["-np"] == "2"
    assert pairs["--slots-per-host"] == "4"
    options, _ = horovodrun("--min-np", 2, "--max-np", 6, *script, SCRIPT)
    pairs = dict(zip(options[2::2], options[3::2]))
    assert (pairs["-np"], pairs["--min-np"], pairs["--max-np"]) == ("2", "2", "6")


# ---- the check ------------------------------------------------------------------

VERSIONS = {
    "Python": "3.11.7",
    "TensorFlow": "2.21.0",
    "Keras": "3.15.1",
    "Horovod": "0.28.1",
    "gsnr_tf": "0.1.0 (0badcafe)",
}


def report(address="10.0.0.1", missing=(), built_for="2.21.0", **versions):
    return {
        "versions": {**VERSIONS, **versions},
        "horovod_built_for": built_for,
        "missing": list(missing),
        "name": "box",
        "address": address,
    }


def checked(monkeypatch, **reports):
    monkeypatch.setattr(check, "ask", lambda host, *_: reports[host])
    return check.check(list(reports))


def test_hosts_that_are_alike_can_train(monkeypatch):
    assert set(checked(monkeypatch, a=report(), b=report())) == {"a", "b"}


def test_unequal_versions_are_a_table_of_who_has_what(monkeypatch):
    odd = report(Keras="3.12.0", gsnr_tf=None)
    with pytest.raises(CannotStart) as raised:
        checked(monkeypatch, node1=report(), node2=odd, node3=report())
    lines = str(raised.value).splitlines()
    assert max(map(len, lines)) <= 80
    heading = next(line for line in lines if line.startswith("hosts"))
    assert heading.split() == [
        "hosts",
        "Python",
        "TensorFlow",
        "Keras",
        "(!)",
        "Horovod",
        "gsnr_tf",
        "(!)",
    ]
    alike = next(line for line in lines if line.startswith("node1, node3"))
    assert alike.split()[2:6] == ["3.11.7", "2.21.0", "3.15.1", "0.28.1"]
    other = next(line for line in lines if line.startswith("node2"))
    assert other.split()[1:] == ["3.11.7", "2.21.0", "3.12.0", "0.28.1", "none"]
    assert "  node2: gsnr_tf is not installed" in lines


@pytest.mark.parametrize(
    ("reports", "says"),
    [
        (
            {"a": "ssh: Permission denied"},
            "cannot be reached:\n  a: ssh: Permission denied",
        ),
        ({"a": report(missing=["/x/train.py"])}, "a: /x/train.py is not there"),
        ({"a": report(built_for=None)}, "a: Horovod was built without TensorFlow"),
        ({"a": report(built_for="2.20.0")}, "built for TensorFlow 2.20.0, and 2.21.0"),
        ({"a": report(Horovod=None)}, "a: Horovod is not installed"),
        (
            {"a": report(), "b": report(address="127.0.1.1")},
            "b: its own name, box, stands for 127",
        ),
    ],
)
def test_what_keeps_a_host_from_training_is_said(monkeypatch, reports, says):
    with pytest.raises(CannotStart, match=says):
        checked(monkeypatch, **reports)


def test_where_all_is_local_a_host_may_call_itself_what_it_likes(monkeypatch):
    here = {"localhost": report(address="127.0.1.1"), "127.0.0.1": report(address=None)}
    assert checked(monkeypatch, **here)


# ---- output ---------------------------------------------------------------------

MINE = ["Traceback (most recent call last):", '  File "train.py"', "ValueError: mine"]
SHUT = [
    "Traceback (most recent call last):",
    "  hvd.allreduce(x)",
    "UnknownError: Horovod has been shut down. This was caused by an exception",
]


def said(rank, *lines, stream="stderr"):
    return "".join(f"[{rank}]<{stream}>:{line}\n" for line in lines)


def ended(rank, code, at, told=False, error=None, left=False):
    """What the supervisor beside a rank reports; `error` is lines of a traceback."""
    if left:
        error = {"left": True, "time": at}
    elif error:
        kind, _, message = error[-1].partition(": ")
        trace = "\n".join(error)
        error = {"time": at, "type": kind, "message": message, "traceback": trace}
        error["left"] = False
    report = {"code": code, "time": at, "ended": told, "error": error}
    return said(rank, supervise.REPORT + json.dumps(report))


def taken(text, **options):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        output = Output(2, **options)
        for line in text.splitlines(keepends=True):
            output.take(line)
        output.close()
    return output, out.getvalue(), error.getvalue()


def test_the_cause_is_told_from_the_aftermath():
    """Rank 0 ended first, but for want of rank 1, which was made to end."""
    output, out, error = taken(
        said(0, "step 1", stream="stdout")
        + said(1, *MINE)
        + said(1, "printed before, and here after", stream="stdout")
        + said(0, *SHUT)
        + ended(0, 1, at=1)
        + "Process 0 exit with status code 1.\n"
        + "Terminating remaining workers after failure of Process 0.\n"
        + ended(1, 143, at=2, told=True)
        + "Process 1 exit with status code 143.\n"
        + "Traceback (most recent call last):\n"
        + '  File "horovodrun", line 8, in <module>\n'
        + "RuntimeError: Horovod detected that one or more processes exited\n"
    )
    assert out == "0 | step 1\n1 | printed before, and here after\n"
    assert output.culprit().rank == 1
    assert output.explanation().splitlines() == ["Rank 1 failed.", *MINE]
    # It was ended before it could return one of its own.
    assert output.exit_code() == 1
    assert "RuntimeError" not in error and supervise.REPORT not in error


# What each rank prints and how it ends, and who is to blame. The reports arrive in any
# order, and are lost with the connection to a rank's host.
RUNS = {
    "raises": ([(MINE, 1, 5, False), (SHUT, 1, 6, False)], 0),
    "raises, reported late": ([(SHUT, 1, 5, False), (MINE, 1, 6, False)], 1),
    "raises, then is ended": ([(SHUT, 1, 5, False), (MINE, 143, 6, True)], 1),
    "raises, the other is ended": ([(MINE, 7, 5, False), ([], 143, 6, True)], 0),
    "is killed": ([(SHUT, 1, 5, False), ([], 137, 4, False)], 1),
    "aborts": ([(["what(): Connection closed by peer"], 134, 5, False),
                (["F kernel failed"], 134, 4, False)], 1),
    "leaves": ([([], 0, 4, False), (SHUT, 1, 5, False)], 0),
    "prints a handled error": ([(MINE, 143, 6, True), ([], 3, 5, False)], 1),
    "raises what quotes the other": (
        [(["Traceback (most recent call last):", "  except HorovodInternalError:",
           "ValueError: mine"], 1, 5, False), (SHUT, 1, 4, False)], 0),
}  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("name", RUNS)
def test_who_is_to_blame(name, order):
    ranks, guilty = RUNS[name]
    text = ""
    for rank in order:
        lines, code, at, told = ranks[rank]
        text += said(rank, *lines) + ended(rank, code, at, told)
    output, *_ = taken(text)
    assert output.culprit().rank == guilty
    assert f"Rank {guilty} " in output.explanation().splitlines()[0]
    code = ranks[guilty][1]
    assert output.exit_code() == (1 if code in (0, 143) else code)


def test_a_recorded_error_counts_more_than_a_printed_one():
    """Both were made to end, and both have printed an error that is not of the other."""
    output, *_ = taken(
        said(0, *MINE)
        + said(1, *MINE)
        + ended(0, 143, at=1, told=True)
        + ended(1, 143, at=2, told=True, error=["KeyError: 'lost'"])
    )
    assert output.culprit().rank == 1
    assert output.explanation().splitlines() == ["Rank 1 failed.", "KeyError: 'lost'"]


@pytest.mark.parametrize("code", [1, 255])
def test_a_rank_without_a_report_is_judged_by_what_it_printed(code):
    text = said(0, *SHUT) + ended(0, 1, at=1)
    output, *_ = taken(f"{text}Process 1 exit with status code {code}.\n")
    assert (output.culprit().rank, output.exit_code()) == (1, code)
    text = said(1, *SHUT) + ended(0, 7, at=1)
    output, *_ = taken(f"{text}Process 1 exit with status code {code}.\n")
    assert (output.culprit().rank, output.exit_code()) == (0, 7)


def test_a_killed_rank_is_the_cause_though_it_says_nothing():
    output, *_ = taken(said(0, *SHUT) + ended(0, 1, at=1) + ended(1, 139, at=2))
    assert (output.culprit().rank, output.exit_code()) == (1, 139)
    assert "ended by signal 11" in output.explanation()


def test_one_that_left_while_others_trained_is_named():
    output, *_ = taken(ended(1, 0, at=1) + said(0, *SHUT) + ended(0, 1, at=2))
    first, second, *rest = output.explanation().splitlines()
    assert first.startswith("Rank 1 left with exit code 0 while others were training")
    assert second == "Rank 0 then failed: exit code 1."
    assert rest == SHUT
    assert output.exit_code() == 1


def test_one_that_was_ended_while_it_left_is_named():
    """Others end for want of it, at once, and then it is made to end."""
    shut = said(0, *SHUT) + ended(0, 1, at=1)
    # Of three ranks, one recorded that it left, before it was ended.
    waiting = ended(2, 143, at=3, told=True)
    output, *_ = taken(shut + waiting + ended(1, 143, at=2, told=True, left=True))
    assert (output.culprit().rank, output.exit_code()) == (1, 1)
    says = "Rank 1 took no part any more while others were training"
    assert output.explanation().startswith(says)
    # Of two ranks, it can only be the one that does not miss another.
    output, *_ = taken(shut + ended(1, 143, at=2, told=True))
    assert output.explanation().startswith(says)
    assert output.explanation().splitlines()[2:] == SHUT


def test_each_rank_that_failed_leaves_an_error_file(tmp_path):
    error = ["Traceback (most recent call last):", "ValueError: mine"]
    text = ended(1, 1, at=2.5, error=error) + said(0, *SHUT) + ended(0, 1, at=3)
    taken(text, folder=tmp_path)
    paths = [tmp_path / f"error-{rank}.json" for rank in (0, 1)]
    found = [json.loads(path.read_text()) for path in paths]
    assert [one["cause"] for one in found] == [False, True]
    assert found[0]["traceback"] == SHUT
    assert found[1] == {
        "rank": 1,
        "exit_code": 1,
        "meaning": "exit code 1",
        "time": 2.5,
        "told_to_end": False,
        "cause": True,
        "type": "ValueError",
        "message": "mine",
        "traceback": error,
    }
    taken(ended(0, 0, at=1), folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_where_no_rank_failed_horovodrun_has_the_last_word():
    output, _, error = taken("could not connect\nTraceback (most recent call last):\n  x\nE: y\n")
    assert output.culprit() is None
    assert output.explanation().endswith("  x\nE: y\n")
    assert error == "horovodrun | could not connect\n"


def test_one_rank_can_speak_for_all():
    _, out, _ = taken("[0]<stdout>:a\n[1]<stdout>:b\n", only=0)
    assert out == "a\n"


def test_chained_tracebacks_are_shown_whole_and_others_not():
    old = ["Traceback (most recent call last):", "E: old", "some line"]
    first = ["Traceback (most recent call last):", "  a", "E: 1", ""]
    chain = ["The above exception was the direct cause of the following exception:", ""]
    last = ["Traceback (most recent call last):", "  b", "E: 2"]
    assert last_traceback(old + first + chain + last) == first + chain + last
    assert last_traceback(["no", "traceback"]) == []


def test_exit_codes_in_words():
    assert meaning(3) == "exit code 3"
    assert meaning(128 + signal.SIGKILL).startswith("ended by signal 9, as when memory")


# ---- gsnr-tf env ----------------------------------------------------------------


def facts(**changes):
    sound = {
        "versions": {**VERSIONS, "NumPy": "2.4.6"},
        "horovod_built_for": "2.21.0",
        "horovod_built_with": ["gloo"],
        "horovod_error": None,
        "horovodrun": True,
        "ssh": "/usr/bin/ssh",
        "gpus": [],
        "visible_gpus": 0,
        "cores": 2,
        "memory": 2**33,
        "tensorflows": ["tensorflow_cpu"],
        "unmet": [],
        "settings": {},
    }
    return {**sound, **changes}


def test_a_sound_environment_has_no_problems():
    assert environment.problems(facts()) == []


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        (
            {"versions": {**VERSIONS, "Horovod": None}},
            "Horovod is missing",
            "install-horovod",
        ),
        ({"horovod_built_for": None}, "without TensorFlow operations", "--rebuild"),
        ({"horovod_built_for": "2.20.0"}, "for TensorFlow 2.20.0", "--rebuild"),
        ({"horovod_error": "cannot be imported"}, "cannot be imported", "--rebuild"),
        (
            {"unmet": ["tensorflow needs keras>=3.12, and 3.9 is installed"]},
            "keras>=3.12",
            "",
        ),
        (
            {"tensorflows": ["tensorflow", "tensorflow_cpu"]},
            "two distributions",
            "Uninstall",
        ),
        ({"settings": {"TF_USE_LEGACY_KERAS": "1"}}, "Keras 2", "unset TF_USE_LEGACY"),
        ({"gpus": ["H100"]}, "TensorFlow sees none", "and-cuda"),
        ({"gpus": ["H100"], "visible_gpus": 1}, "without NCCL", "--gpu"),
        (
            {
                "gpus": ["H100"],
                "visible_gpus": 1,
                "horovod_built_with": ["gloo", "nccl"],
            },
            "XLA",
            "jit_compile=False",
        ),
        ({"ssh": None}, "no ssh", "openssh"),
    ],
)
def test_known_problems_come_with_what_to_do(changes, what, remedy):
    found = environment.problems(facts(**changes))
    assert any(what in problem and remedy in action for problem, action in found), found


def test_hidden_gpus_are_no_problem():
    hidden = facts(gpus=["H100"], settings={"CUDA_VISIBLE_DEVICES": ""})
    assert environment.problems(hidden) == []


def test_the_table_is_readable_where_it_is_no_terminal():
    text = io.StringIO()
    long = facts(
        settings={"HOROVOD_SOMETHING": "x" * 200},
        versions={**VERSIONS, "NumPy": "2.4.6", "Horovod": None},
        horovod_error="h" * 30,
    )
    environment.show(long, file=text)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text.getvalue()
    assert any(line.split() == ["Horovod", "none"] for line in lines)
    assert "  Horovod is missing: several ranks cannot train." in map(str.rstrip, lines)


def test_what_tensorflow_asks_for_is_looked_up(monkeypatch):
    assert environment._unmet_requirements() == []
    monkeypatch.setattr(environment.probe, "version", lambda name: "1.0")
    assert any("keras" in unmet for unmet in environment._unmet_requirements())
