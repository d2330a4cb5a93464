"""The Criteo example: its reader, its planted model, and what it learns."""

import gzip
import itertools
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.processes import ROOT, ranks, run

sys.path.insert(0, str(ROOT / "keras_examples"))

import criteo
import criteo_dlrm
import criteo_planted
from movielens import auc

INTEGERS = ["0", "1", "", "-3", "15000", *["7"] * 8]
HEX = ["68fd1e64", "", "fb936136", "0", *["be7c41b4"] * 22]


def line(label="1", integers=INTEGERS, categories=HEX):
    return "\t".join([label, *integers, *categories])


def parsed(*lines, rows=1000):
    features, labels = criteo.parse(tf.constant(lines), rows)
    return features["numbers"].numpy(), features["categories"].numpy(), labels.numpy()


def test_a_line_is_a_label_numbers_and_ids():
    numbers, ids, labels = parsed(line("1"), line("0"))
    assert labels.tolist() == [[1.0], [0.0]]
    expected = np.log1p([0, 1, 0, 0, 15000, *[7] * 8])
    np.testing.assert_allclose(numbers, [expected, expected], rtol=1e-6)
    assert ids.shape == (2, 26) and ids.dtype == np.int32
    assert ids[0, 1] == 0  # missing
    assert len(set(ids[0, 4:])) == 1  # one value, one id
    assert len({*ids[0, :5]}) == 5


def test_all_fields_but_the_label_may_be_missing():
    numbers, ids, labels = parsed(line("0", [""] * 13, [""] * 26))
    assert not numbers.any() and not ids.any() and not labels.any()


def test_ids_fit_into_the_table_and_none_that_is_there_is_the_missing_one():
    lines = [line(categories=[f"{value:08x}"] * 26) for value in range(500)]
    _, ids, _ = parsed(*lines, rows=8)
    assert set(ids[:, 0]) == set(range(1, 8))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line("", INTEGERS, HEX), "the label is missing"),
        (line("2"), "field 1 must be 0 or 1. Received: '2'"),
        (line(integers=["1.5", *INTEGERS[1:]]), "field 2 must be an integer. Received: '1.5'"),
        (line(categories=[*HEX[:-1], "xyz"]), "field 40 must be .* Received: 'xyz'"),
        (line(categories=["123456789", *HEX[1:]]), "field 15 must be up to 8 hexadecimal"),
        (line(categories=HEX[1:]), "Received 39"),
        (line() + "\t", "Received 41"),
        ("", "Received 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, message):
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv"
    first.write_text(f"{line()}\n{line()}\n")
    second.write_text(f"{line()}\n{bad}\n{line()}\n")
    batches = criteo.evaluation_batches([str(first), str(second)], 5, 10)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"b.tsv, line 2: .*{message}"):
        list(batches)


def test_files_are_found_by_name_and_by_pattern_and_read_packed_or_not(tmp_path):
    lines = [line("0", categories=[f"{value:08x}"] * 26) for value in range(7)]
    (tmp_path / "day_0").write_text("\n".join(lines[:3]))  # no newline at its end
    with gzip.open(tmp_path / "day_1.gz", "wt") as file:
        file.write("\n".join(lines[3:]) + "\n")
    paths = criteo.find_files([f"{tmp_path}/day_*", f"{tmp_path}/day_0"])
    assert [path.rpartition("/")[2] for path in paths] == ["day_0", "day_1.gz"]
    assert criteo.count_lines(paths) == 7
    batches = [features["categories"] for features, _ in criteo.evaluation_batches(paths, 4, 99)]
    assert [len(batch) for batch in batches] == [4, 3]
    np.testing.assert_array_equal(np.concatenate(batches), parsed(*lines, rows=99)[1])
    with pytest.raises(SystemExit, match=r"No file has this name. Received: .*/week_\*"):
        criteo.find_files([f"{tmp_path}/week_*"])


def test_training_sees_each_line_once_a_pass_and_no_pass_in_the_order_of_another(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("".join(line(integers=[str(x)] * 13) + "\n" for x in range(12)))
    batches = criteo.training_batches([str(path)], 4, rows=9, buffer=12, seed=1)
    seen = [np.expm1(features["numbers"][:, 0]).round() for features, _ in batches.take(6)]
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first.tolist() != second.tolist()


@pytest.fixture(scope="module")
def planted():
    return criteo_planted.PlantedModel(0)


def test_one_seed_always_writes_the_same_bytes(tmp_path, planted, monkeypatch):
    monkeypatch.setattr(criteo_planted, "CHUNK", 30)  # two parts, the second one shorter
    models = planted, criteo_planted.PlantedModel(0), criteo_planted.PlantedModel(1)
    texts = []
    for number, model in enumerate(models):
        path = tmp_path / str(number)
        labels, logits = model.write(path, 50, itertools.count())
        texts.append(path.read_bytes())
        assert labels.shape == logits.shape == (50,)
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0].splitlines())) == 50


def test_what_is_written_is_read(tmp_path, planted):
    path = tmp_path / "x.tsv"
    written, _ = planted.write(path, 200, itertools.count(3))
    labels, integers, ids, _ = planted.rows(200, 3)
    ((features, read),) = criteo.evaluation_batches([str(path)], 200, 10**6)
    np.testing.assert_array_equal(read[:, 0], labels)
    np.testing.assert_array_equal(labels, written)
    numbers = np.log1p(np.maximum(integers, 0))
    np.testing.assert_allclose(features["numbers"], numbers, rtol=1e-5)
    np.testing.assert_array_equal(features["categories"] == 0, ids < 0)
    for one, other in zip(np.transpose(features["categories"]), ids.T):
        # Two rows have one id where they had one, in a table of a million rows.
        assert len(set(zip(one, other))) == len(set(one)) == len(set(other))


def test_labels_are_drawn_with_the_chances_of_the_logits(planted):
    labels, _, _, logits = planted.rows(50_000, 0)
    chances = 1 / (1 + np.exp(-logits))
    error = np.sqrt((chances * (1 - chances)).sum())
    assert abs(labels.sum() - chances.sum()) < 4 * error
    # Of what anyone could know, the logits say most.
    best = auc(labels, logits)
    assert 0.75 < best < 0.9
    noise = np.random.default_rng(0).normal(size=len(logits))
    assert auc(labels, logits + noise) < best - 0.02
    # Nobody knows a click beforehand: where the chance is a half, every second one is.
    even = labels[abs(logits) < 0.1]
    assert abs(even.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(even))


def test_ids_follow_a_power_law():
    size = 10_000
    uniform = np.random.default_rng(0).random(400_000)
    counts = np.bincount(criteo_planted.power_law(uniform, size), minlength=size)
    expected = criteo_planted.chances(size) * len(uniform)
    assert expected.sum() == pytest.approx(len(uniform))
    assert len(counts) == size
    # Sums over octaves, of which each has about the same.
    starts = 2 ** np.arange(13)
    found, wanted = np.add.reduceat(counts, starts - 1), np.add.reduceat(expected, starts - 1)
    np.testing.assert_allclose(found, wanted, atol=5 * np.sqrt(wanted.max()))
    slope = np.polyfit(np.log(starts), np.log(expected[starts - 1]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


SMALL = [
    "--generate", "20000", "--batch", "1000", "--dim", "8", "--rows-per-table", "2000",
    "--learning-rate", "0.02", "--accumulation-steps", "4",
]  # fmt: skip


def arguments(folder, *more):
    return [*SMALL, "--output", str(folder), *more]


def test_it_learns(tmp_path, capsys):
    args = criteo_dlrm.parse_arguments(arguments(tmp_path, "--sparse", "lazy"))
    found, loss = criteo_dlrm.main(args)
    printed = capsys.readouterr().out
    assert found > 0.58
    assert f"test AUC {found:.4f}, log loss {loss:.4f}" in printed
    assert "20 updates of 1,000 examples = 4 samples" in printed
    assert "test.tsv: 4,000 lines" in printed and "Bayes AUC 0.7" in printed
    assert "examples/s in training" in printed and "k=4 samples an update" in printed


def test_log_loss_is_that_of_the_chances():
    labels, logits = np.array([1.0, 0.0, 1.0]), np.array([0.3, -2.0, -800.0])
    likely = np.log1p(np.exp(-0.3)) + np.log1p(np.exp(-2.0)) + 800
    assert criteo_dlrm.log_loss(labels, logits) == pytest.approx(likely / 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give either --generate, or both --data and --test-data"),
        (["--data", "x"], "give either"),
        (["--data", "x", "--test-data", "y", "--generate", "5"], "give either"),
        (["--generate", "0"], "--generate must be above 0. Received: 0"),
        (["--generate", "9", "--batch", "100", "--accumulation-steps", "3"], "100 and 3"),
        (["--generate", "9", "--rows-per-table", "1"], "starts at 2. Received: 1"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        criteo_dlrm.parse_arguments(given)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_learn_and_one_speaks(tmp_path):
    script = str(ROOT / "keras_examples" / "criteo_dlrm.py")
    finished = run(ranks(2, script, *arguments(tmp_path)), 300)
    assert finished.code == 0, finished.output
    assert "20 updates of 1,000 examples = 8 samples" in finished.output
    (told,) = [text for text in finished.output.splitlines() if "test AUC" in text]
    assert float(told.split("test AUC ")[1].split(",")[0]) > 0.58
