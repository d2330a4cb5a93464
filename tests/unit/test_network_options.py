"""What `gsnr-tf bench network` and `plan` accept, refuse and learn."""

import json

import pytest

from gsnr_tf import cli
from gsnr_tf.benchmarks import hosts, tables
from gsnr_tf.planning import calibrate, cost


def stand_in(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with nothing but what a test puts into it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        cli.main(list(arguments))
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value, complaint",
    [
        ("--rates", "0", "0 is not above 0"),
        ("--rates", "inf", "inf is not above 0"),
        ("--delays", "-1", "-1 is not above 0"),
        ("--np", "1", "1 is not from 2 to 250"),
        ("--params", "many", "'many' is no number such as 8M"),
    ],
)
def test_settings_that_cannot_be_measured(capsys, option, value, complaint):
    assert complaint in refused(capsys, "bench", "network", f"{option}={value}")


def test_defaults_are_those_of_the_readme():
    args = cli.parser().parse_args(["bench", "network"])
    assert (args.np, args.params, args.rates) == ([2], [2_000_000], [10, 1, 0.1])
    assert args.delays == [0, 0.1, 5]


@pytest.mark.parametrize("ranks, per_host", [("4", "3"), ("2", "2"), ("4", "0")])
def test_hosts_that_ranks_do_not_fill(capsys, ranks, per_host):
    setting = ["--np", ranks, "--ranks-per-host", per_host]
    assert "--np must be 2 or more times" in refused(capsys, "bench", "network", *setting)


def test_without_the_tools_it_says_which_one_is_missing(tools, capsys):
    stand_in(tools, "unshare", "exit 0")
    assert cli.main(["bench", "network"]) == 1
    assert capsys.readouterr().err.startswith("There is no `ip` here")


def test_without_the_rights_it_says_so_and_stops(tools, capsys):
    for name in ("ip", "tc"):
        stand_in(tools, name, "exit 0")
    stand_in(tools, "unshare", "echo unshare failed: Operation not permitted >&2; exit 1")
    assert cli.main(["bench", "network"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "This machine does not let us make network namespaces and shape their links "
        "(unshare failed: Operation not permitted); try as root.\n"
    )


def test_both_directions_of_a_link_are_shaped(monkeypatch):
    ran = []
    monkeypatch.setattr(
        hosts, "command", lambda *words, namespace=None: ran.append((namespace, words))
    )
    network = hosts.Hosts(2)
    ran.clear()
    network.shape(1e9, delay=0.005)
    shaped = {
        (namespace, words[words.index("dev") + 1], words[words.index("rate") + 1])
        for namespace, words in ran
        if "tbf" in words
    }
    assert shaped == {
        ("host0", "eth0", "1000000000bit"),
        (None, "port0", "1000000000bit"),
        ("host1", "eth0", "1000000000bit"),
        (None, "port1", "1000000000bit"),
    }
    delayed = [(namespace, words[-4:-2]) for namespace, words in ran if "netem" in words]
    assert delayed == [("host0", ("delay", "5000us")), ("host1", ("delay", "5000us"))]


@pytest.mark.parametrize("number", [1, 251])
def test_hosts_that_do_not_fit_the_network(number):
    with pytest.raises(ValueError, match=f"2 to 250 hosts. Received: {number}"):
        hosts.Hosts(number)


def test_a_command_that_fails_is_quoted():
    with pytest.raises(RuntimeError, match="`ip link show gone0` failed: .*gone0"):
        hosts.command("ip", "link", "show", "gone0")


def measured(costs, latency=0.0, headers=0.05):
    """What the benchmark would write if the model were the truth."""
    answers = []
    for ranks in (2, 4):
        for elements in (10**6, 4 * 10**6):
            for rate in (1e8, 1e10):
                answer = {
                    "ranks": ranks,
                    "ranks_per_host": 1,
                    "cores": 2,
                    "elements": elements,
                    "rate": rate,
                    "delay": 0.0,
                    "rule": "lamb",
                    "tensors": 2,
                    "rows": [],
                }
                link = cost.Link(latency=latency, bandwidth=rate / 8 / (1 + headers))
                cluster = cost.Cluster(hosts=ranks, ranks_per_host=1, between=link, within=link)
                job = cost.Job(parameters=elements)
                for contender, scheme in zip(("keras", "none", "slices"), cost.SCHEMES):
                    step = cost.step(scheme, job, cluster, costs.slowed(ranks / 2))
                    answer["rows"].append(
                        {"contender": contender, "seconds": step.seconds, "ratio": 1.0,
                         "compute": step.update, "handed_bytes": 1000.0,
                         "wire_bytes": 1000.0 * (1 + headers)}
                    )  # fmt: skip
                answers.append(answer)
    return answers


TRUTH = cost.Costs(
    fixed=1e-3,
    launch=2e-3,
    per_byte=2e-9,
    plain=1e-8,
    whole=3e-8,
    slices=8e-9,
    slice=5e-9,
)


def test_calibration_finds_the_costs_that_made_the_measurements():
    found = calibrate.fit(measured(TRUTH, latency=1e-4))
    for name, value in vars(TRUTH).items():
        assert getattr(found.costs, name) == pytest.approx(value, rel=1e-6), name
    assert found.latency == pytest.approx(1e-4)
    assert found.headers == pytest.approx(0.05)
    assert found.rows == 24


def test_a_cost_that_is_not_there_is_found_to_be_none():
    found = calibrate.fit(measured(cost.Costs(plain=1e-8, whole=1e-8, slice=1e-8)))
    assert found.costs.launch == pytest.approx(0, abs=1e-9)
    assert found.costs.slices == pytest.approx(0, abs=1e-12)


def test_predictions_are_compared_with_what_was_measured():
    answers = measured(TRUTH)
    found = calibrate.fit(answers)
    for answer in answers:
        for row in answer["rows"]:
            row["seconds"] *= 2
    errors = [one.error for one in calibrate.compare(found, answers)]
    assert errors == pytest.approx([-0.5] * len(errors))


def test_nothing_can_be_learned_from_nothing():
    with pytest.raises(ValueError, match="nothing to learn from"):
        calibrate.fit([])


PLAN = ["plan", "--params", "350M", "--compute", "0.25", "--ranks-per-host", "8"]


def test_a_plan_fits_the_terminal_and_draws_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*PLAN, "--plot", "plan.png"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    told = " ".join(said.split())
    assert "Slices go by host there" in told
    assert "from 8 on a host is one (k = 128 here)" in told
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_plan_learns_from_measurements_and_is_checked_by_others(tmp_path, capsys):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(measured(TRUTH)))
    assert cli.main(["plan", "--calibrate", str(path), "--check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "learned from 24 measurements" in said
    assert "24 of 24 within 25%" in said


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--check", "x.json", "--compute", "1"], "--check needs --calibrate"),
        (["--examples-per-second", "100"], "--examples-per-second and --batch"),
        ([], "tell the speed of a worker"),
        (
            ["--compute", "1", "--examples-per-second", "9", "--batch", "9"],
            "tell the speed",
        ),
        (["--ranks-per-host", "0"], "0 is not a whole number above 0"),
        (["--bandwidth", "-1"], "-1 is not above 0"),
    ],
)
def test_plans_that_cannot_be_made(capsys, arguments, complaint):
    assert complaint in refused(capsys, "plan", *arguments)


def test_the_table_counts_headers():
    answer = measured(TRUTH)[0]
    table = tables.network_table(answer)
    assert list(table.columns[-1].cells) == ["5.0%"] * 3
