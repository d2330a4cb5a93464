"""The configuration: what it accepts, and how it says what is wrong."""

import json

import jsonschema
import pytest

from gsnr_tf import cli
from gsnr_tf.engine import ConfigError, explain, read, schema
from gsnr_tf.engine.build import optimizer_arguments

pytestmark = pytest.mark.smoke

GOOD = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "GSNRLamb", "params": {"lr": 0.01, "betas": [0.8, 0.99]}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
    "fp16": {"enabled": True, "hysteresis": 1},
    "zero_optimization": {"stage": 2},
}

RAMP = {"max_train_batch_size": 256}


def changed(path, value, config=GOOD):
    """The configuration with one key set, a dotted path."""
    first, _, rest = path.partition(".")
    inner = config.get(first, {})
    return {**config, first: changed(rest, value, inner) if rest else value}


def refused(config):
    with pytest.raises(ConfigError) as caught:
        read(config)
    return str(caught.value)


def test_a_good_configuration_is_read_from_dict_and_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD))
    assert read(path) == read(str(path)) == read(GOOD)
    assert read(GOOD).optimizer.params["betas"] == [0.8, 0.99]
    assert read(GOOD).fp16.loss_scale_window == 1000


def test_the_schema_is_valid_and_agrees_with_the_reader():
    jsonschema.Draft202012Validator.check_schema(schema())
    check = jsonschema.Draft202012Validator(schema())
    check.validate(GOOD)
    for path in (
        "nonsense",
        "fp16.nonsense",
        "zero_optimization.stage",
        "fp16.enabled",
    ):
        wrong = changed(path, 4)
        assert not check.is_valid(wrong)
        refused(wrong)


@pytest.mark.parametrize(
    "path, meant",
    [
        ("train_batchsize", "train_batch_size"),
        ("gradient_accumulation_step", "gradient_accumulation_steps"),
        ("fp16.hysteresys", "hysteresis"),
        ("zero_optimization.reduce_bucketsize", "reduce_bucket_size"),
        ("optimizer.parms", "params"),
        ("gsnr.gama", "gamma"),
        ("gsnr.batch_ramp.shar", "share"),
    ],
)
def test_unknown_keys_at_any_level_name_the_nearest(path, meant):
    message = refused(changed(path, 1))
    assert f"{path}: unknown key. Did you mean {meant!r}?" in message


def test_an_unknown_key_like_no_other_lists_what_is_known():
    assert "bf16.qqq: unknown key. Known: enabled." in refused(changed("bf16.qqq", 1))


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("optimizer.type", "GSNRLam", "Did you mean 'GSNRLamb'?"),
        ("optimizer.params.learning_rte", 0.1, "Did you mean 'learning_rate'?"),
        ("optimizer.params.learning_rate", 0.1, "both 'lr' and 'learning_rate'"),
        ("optimizer.params.betas", 0.9, "params.betas must be two numbers"),
        ("optimizer.params.sharding", "slices", "use `zero_optimization.stage`"),
        ("optimizer.params.bias_correction", False, "of DeepSpeed is not supported"),
        ("optimizer.params.gamma", 7, "gamma must be in (0, 1]. Received: gamma=7"),
        ("scheduler.type", "Warmup", "Input should be 'WarmupLR'"),
        ("scheduler.params.warmup_steps", 1, "Did you mean 'warmup_num_steps'?"),
        ("scheduler.params.warmup_type", "cubic", "'log' or 'linear'"),
        ("train_batch_size", "64", "should be a valid integer. Received: '64'"),
        ("steps_per_print", "auto", "Write the value"),
        ("train_batch_size", 0, "greater than or equal to 1. Received: 0"),
        ("train_batch_size", True, "should be a valid integer. Received: True"),
        ("gradient_clipping", -1.0, "greater than or equal to 0. Received: -1.0"),
        ("communication_data_type", "fp8", "Input should be 'fp32'"),
        ("bf16", {"enabled": True}, "fp16 and bf16 exclude each other"),
        ("fp16.min_loss_scale", 1e6, "above the initial scale"),
        ("fp16.enabled", 1, "should be a valid boolean. Received: 1"),
        ("fp16.initial_scale_power", 128, "less than or equal to 127. Received: 128"),
        ("gradient_clipping", float("inf"), "should be a finite number. Received: inf"),
        ("optimizer.params.lr", "0.1", "params.lr must be a number. Received: '0.1'"),
        ("optimizer.params.lr", None, "params.lr must be a number. Received: None"),
        ("optimizer.params.lr", "auto", "initialize(auto={'lr': …})"),
        ("optimizer.params.weight_decay", "x", "weight_decay must be a number"),
        ("optimizer.params.use_ema", 1, "use_ema must be true or false. Received: 1"),
        ("optimizer.params.betas", ["a", 1], "params.betas must be two numbers"),
        ("optimizer", "Adam", "an object of the keys type, params. Received: 'Adam'"),
        ("scheduler.params.warmup_max_lr", "a", "warmup_max_lr must be a number"),
        ("gsnr.batch_ramp", {}, "max_train_batch_size: this section or key is needed"),
    ],
)
def test_wrong_values_say_what_was_received_and_what_would_work(path, value, told):
    assert told in refused(changed(path, value))


def test_a_ramp_looks_at_what_the_monitor_records():
    ramp = {"batch_ramp": {**RAMP, "every": 3}}
    read({**GOOD, "gsnr": {**ramp, "monitor_interval": 3}})
    message = refused({**GOOD, "gsnr": {**ramp, "monitor_interval": 4}})
    assert "every=3 and monitor_interval=4. Leave `every` out" in message


def test_a_ramp_needs_room_and_is_explained():
    found = read({**GOOD, "gsnr": {"batch_ramp": {"max_train_batch_size": 300}}})
    told = dict(explain(found, 2))
    assert told["gsnr.batch_ramp"] == "64 > 128 > 256 examples an update"
    found = read({**GOOD, "gsnr": {"batch_ramp": {"max_train_batch_size": 127}}})
    with pytest.raises(ConfigError, match="Set max_train_batch_size to 128 or more"):
        found.batch(2)


def test_a_scheduler_names_the_parameters_it_lacks():
    config = changed("scheduler", {"type": "OneCycle", "params": {"cycle_min_lr": 0.1}})
    assert "params needs cycle_max_lr for OneCycle" in refused(config)


@pytest.mark.parametrize(
    "path, value",
    [
        ("gsnr.gamma", 0.5),
        ("gsnr.estimator", "robust"),
        ("gsnr.batch_ramp", {"max_train_batch_size": 64}),
    ],
)
def test_what_only_the_family_can_do_is_refused_for_kerass_own(path, value):
    plain = {"train_batch_size": 8, "optimizer": {"type": "adamw"}}
    read(plain)
    message = refused(changed(path, value, plain))
    assert path in message and "GSNR family" in message


def test_all_mistakes_are_told_at_once():
    message = refused({**GOOD, "a": 1, "b": 2, "gradient_clipping": "x"})
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "gradient_clipping",
        "a",
        "b",
    ]


def test_rates_may_be_written_as_integers():
    found = read(changed("optimizer.params.lr", 1))
    rule, arguments = optimizer_arguments(found, found.batch(2))
    rule(**arguments)
    plain = {k: v for k, v in GOOD.items() if k != "scheduler"}
    found = read(changed("optimizer.params.lr", 1, plain))
    assert optimizer_arguments(found, found.batch(2))[1]["learning_rate"] == 1.0


def test_integers_may_be_written_as_in_5e8():
    config = changed("zero_optimization.reduce_bucket_size", 5e8)
    assert read(config).zero_optimization.reduce_bucket_size == 500_000_000
    assert "valid integer" in refused(changed("zero_optimization.reduce_bucket_size", 0.5))


@pytest.mark.parametrize(
    "text, told",
    [
        ('{"a": 1,\n "b": }', "Expecting value at line 2, column 7"),
        ("", "Expecting value at line 1, column 1"),
        ('{"fp16": {"enabled": true,\n\n "enabled": false}}', "has 'enabled' twice"),
        ('{"gradient_clipping": NaN}', "has NaN"),
        ("[1]", "must be a JSON object or a dict. Received: [1]"),
    ],
)
def test_what_is_not_json_says_where(tmp_path, text, told):
    path = tmp_path / "config.json"
    path.write_text(text)
    message = refused(path)
    assert told in message and "config.json" in message


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read(path) == read(GOOD)


def test_a_job_has_ranks():
    with pytest.raises(ConfigError, match="at least 1 rank. Received: 0"):
        read(GOOD).batch(0)


def test_a_missing_file_is_named(tmp_path):
    assert "no.json cannot be read: No such file" in refused(tmp_path / "no.json")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("left_out", range(4))
def test_any_two_sizes_give_the_third(ranks, left_out):
    sizes = [8 * 3 * ranks, 8, 3]
    names = ["train_batch_size", "train_micro_batch_size_per_gpu"]
    names += ["gradient_accumulation_steps"]
    given = {n: s for i, (n, s) in enumerate(zip(names, sizes)) if i != left_out}
    found = read({**given, "optimizer": {"type": "SGD"}}).batch(ranks)
    assert [*found] == [*sizes, ranks]


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"train_batch_size": 12}, (12, 6, 1)),
        ({"train_micro_batch_size_per_gpu": 5}, (10, 5, 1)),
    ],
)
def test_one_size_alone_means_no_accumulation(given, expected):
    found = read({**given, "optimizer": {"type": "SGD"}}).batch(2)
    assert found[:3] == expected


@pytest.mark.parametrize(
    "train, micro, accumulation, told",
    [
        (100, 8, 3, "8 × 3 × 4 = 96, not 100. Set train_batch_size to 96"),
        (100, 8, None, "would be 3.125, which is not a whole number"),
        (100, None, 3, "Set train_batch_size to 96 or 108"),
        (2, None, None, "train_micro_batch_size_per_gpu would be 0.5"),
    ],
)
def test_contradicting_sizes_name_all_three(train, micro, accumulation, told):
    config = {
        "train_batch_size": train,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "optimizer": {"type": "SGD"},
    }
    with pytest.raises(ConfigError) as caught:
        read(config, needed=False).batch(4)
    message = str(caught.value)
    assert told in message
    for name, size in list(config.items())[:3]:
        assert f"{name}={'(not given)' if size is None else size}" in message


def test_explain_tells_what_the_keys_come_to():
    told = dict(row for row in explain(read(GOOD), 8) if row[0])
    assert told["gradient_accumulation_steps"] == "2 (derived, on 8 ranks)"
    assert told["samples (k)"] == "16 = 8 ranks × 2 micro-batches"
    assert "beta_1=0.8, beta_2=0.99" in told["optimizer"]
    assert "warmup_num_steps=10" in told["scheduler"]
    assert told["precision"].startswith("mixed_float16, loss × 65536 at first")
    assert told["zero_optimization"] == "each rank has the state of its slice"
    alone = dict(row for row in explain(read(GOOD), 1) if row[0])
    assert alone["zero_optimization"] == "every rank has all state"


def test_the_command_checks_a_file(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GOOD))
    assert cli.main(["config", "check", str(path), "--np", "8"]) == 0
    assert "2 (derived, on 8 ranks)" in capsys.readouterr().out
    assert cli.main(["config", "check", str(path), "--np", "5"]) == 1
    assert "train_batch_size=64" in capsys.readouterr().err


def test_the_command_prints_the_schema(capsys):
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
