"""Files of DeepSpeed's as they are: what is accepted, what is told, and its optimizers."""

import json
import re

import keras
import numpy as np
import pytest

from gsnr_tf import cli
from gsnr_tf.engine import ConfigError, explain, initialize, read
from gsnr_tf.engine.build import build_optimizer
from gsnr_tf.engine.deepspeed import auto, table
from gsnr_tf.engine.deepspeed.optimizers import CLASSES
from gsnr_tf.engine.deepspeed.table import Kind

PLAIN = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01}},
}


def refused(config, **how):
    with pytest.raises(ConfigError) as caught:
        read(config, make=False, **how)
    return str(caught.value)


def with_key(path, value):
    first, _, rest = path.partition(".")
    for part in reversed(rest.split(".") if rest else []):
        value = {part: value}
    if isinstance(PLAIN.get(first), dict):
        value = {**PLAIN[first], **value}
    return {**PLAIN, first: value}


def headings(config):
    return {decision.key: decision.heading for decision in config.decisions}


# ---- the three classes --------------------------------------------------------------


@pytest.mark.parametrize("path", [key for key in table.KEYS if "*" not in key])
def test_each_key_of_the_table_does_what_its_class_says(path):
    row = table.KEYS[path]
    # A value that neither switches off nor repeats a default.
    value = {"enabled": True} if path.count(".") == 0 else 7
    config = with_key(path, value)
    if row.kind is Kind.REFUSED:
        message = refused(config)
        assert f"{path}: this key of DeepSpeed is not supported: {row.why}." in message
        assert len(row.why) > 20
        return
    assert headings(read(config, make=False))[path] == row.kind.value
    assert f"{path}: this key of DeepSpeed is not supported" in refused(config, strict=True)


@pytest.mark.parametrize(
    "path, value",
    [
        ("amp", {"enabled": False}),
        ("amp", {"opt_level": "O1"}),
        ("elasticity", {"enabled": False, "max_train_batch_size": 9}),
        ("compression_training", {"layer_reduction": {"enabled": False}}),
        ("curriculum_learning", {"enabled": False}),
        ("gradient_predivide_factor", 1.0),
        ("gradient_allreduce_op", "mean"),
        ("prescale_gradients", False),
        ("fp16.consecutive_hysteresis", False),
        ("bf16.check_grad_overflow", True),
        ("sequence_parallel_size", 1),
        ("tensor_parallel", {"autotp_size": 1}),
        ("data_types", {"grad_accum_dtype": "fp32"}),
        ("zero_optimization.zenflow", None),
        ("zero_optimization.zero_quantized_gradients", False),
    ],
)
def test_what_is_switched_off_or_a_default_has_no_effect(path, value):
    assert headings(read(with_key(path, value), make=False))[path] == Kind.NO_EFFECT.value


@pytest.mark.parametrize(
    "path, value",
    [
        ("compression_training", {"a": {"shared_parameters": {"enabled": True}}}),
        ("sequence_parallel_size", 2),
        ("tensor_parallel", {"autotp_size": 4}),
        ("quantize_training", {"quantize_bits": {"start_bits": 8}}),
        ("bf16.check_grad_overflow", False),
        ("gradient_allreduce_op", "sum"),
        ("fp16.consecutive_hysteresis", True),
    ],
)
def test_what_would_change_results_is_an_error(path, value):
    assert f"{path}: this key of DeepSpeed is not supported" in refused(with_key(path, value))


def test_all_problems_of_a_file_are_told_in_one_round():
    wrong = {
        "train_batch_size": 7,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": "x", "momentum": 1, "amsgrad": True}},
        "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "a": 1}},
        "fp16": {"enabled": True, "hysteresys": 3},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": True},
        "elasticity": {"enabled": True},
        "nonsense": 1,
    }
    message = refused(wrong, ranks=1)
    for told in (
        "2 × 2 × 1 = 4, not 7",
        "params.lr must be a number. Received: 'x'",
        "params.momentum is unknown",
        "optimizer.params.amsgrad: this key of DeepSpeed is not supported",
        "params.a is unknown",
        "params needs cycle_max_lr",
        'cycle_momentum": false',
        "Did you mean 'hysteresis'?",
        "fp16 and bf16 exclude each other",
        "zero_optimization.stage: must be a number. Received: True",
        "elasticity: this key",
        "nonsense: unknown key",
    ):
        assert told in message, told


def test_strict_accepts_what_has_the_same_meaning():
    config = {**PLAIN, "gradient_clipping": 1.0, "fp16": {"enabled": True, "loss_scale": 0}}
    assert read(config, make=False, strict=True).decisions == ()


# ---- spellings ------------------------------------------------------------------------


def test_comments_and_trailing_commas_are_read_as_deepspeed_reads_them(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        '{\n  // a comment\n  "train_batch_size": 8, # another\n  /* and one more */\n'
        '  "optimizer": {"type": "Adam", "params": {"lr": 1e-3,},},\n}\n'
    )
    config = read(path, make=False)
    assert config.train_batch_size == 8 and config.optimizer.params == {"lr": 0.001}


def test_a_key_that_begins_with_an_underscore_is_a_comment():
    assert headings(read({**PLAIN, "_comment": "x"}, make=False))["_comment"]
    assert "unknown key" in refused({**PLAIN, "_comment": "x"}, strict=True)


@pytest.mark.parametrize("spelled", ["bf16", "BF16", "bfp16", "BFP16", "FP16", "fp32"])
def test_types_that_travel_in_any_case(spelled):
    family = {**PLAIN, "optimizer": {"type": "GSNRAdam"}, "communication_data_type": spelled}
    found = read(family, make=False).communication_data_type
    assert found == {"bf16": "bfp16"}.get(spelled.lower(), spelled.lower())
    told = headings(read({**PLAIN, "communication_data_type": spelled}, make=False))
    assert told.get("communication_data_type") == (
        None if spelled == "fp32" else Kind.OTHER_ROUNDING.value
    )


@pytest.mark.parametrize("zero, stage", [(True, 1), (False, 0), ({"stage": 3}, 2)])
def test_stages_as_the_family_runs_them(zero, stage):
    family = {**PLAIN, "optimizer": {"type": "GSNRAdam"}, "zero_optimization": zero}
    assert read(family, make=False).zero_optimization.stage == stage


def test_other_optimizers_say_that_their_state_stays_whole():
    config = read({**PLAIN, "zero_optimization": {"stage": 2}}, make=False)
    assert headings(config)["zero_optimization.stage"] == Kind.NO_EFFECT.value
    config = read({**PLAIN, "zero_optimization": {"stage": 3}}, make=False)
    told = {decision.key: decision for decision in config.decisions}
    assert told["zero_optimization.stage"].heading == Kind.OTHER_ROUNDING.value
    assert "4 bytes" in told["zero_optimization.stage"].text


def test_bfloat16_is_bf16_and_not_both():
    assert read({**PLAIN, "bfloat16": {"enabled": True}}, make=False).bf16.enabled
    assert "leave one out" in refused({**PLAIN, "bfloat16": {}, "bf16": {}})


# ---- "auto" -----------------------------------------------------------------------------

TRAINER = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "total_num_steps": "auto",
        },
    },
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
}
GIVEN = {
    "train_micro_batch_size_per_gpu": 4,
    "lr": 0.01,
    "warmup_num_steps": 10,
    "total_num_steps": 100,
}


def test_what_auto_stands_for():
    config = read(TRAINER, auto=GIVEN)
    assert config.batch(2)[:3] == (8, 4, 1)
    assert config.optimizer.params == {
        "lr": 0.01,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    assert config.gradient_clipping == 1.0
    assert not config.fp16.enabled and not config.bf16.enabled
    assert config.scheduler.params["total_num_steps"] == 100
    rates = [text for _, text in explain(config, 1) if str(text).startswith("update ")]
    # The peak of the schedule is the optimizer's rate.
    assert "update 10: 0.01" in rates


def test_what_nobody_has_said_names_the_argument_that_says_it():
    message = refused(TRAINER)
    for name in GIVEN:
        assert f"initialize(auto={{{name!r}: …}})" in message
        assert f"--auto {name}=…" in message
    assert message.count("\n") == len(GIVEN)


def test_a_check_goes_on_with_examples_and_lists_what_is_needed():
    config = read(TRAINER, needed=False)
    needed = [one.key for one in config.decisions if one.heading == table.NEEDED]
    assert {key.rsplit(".", 1)[-1] for key in needed} == set(GIVEN)


def test_sizes_follow_from_two_of_them():
    sizes = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": "auto"}
    given = {**PLAIN, **sizes, "gradient_accumulation_steps": 2}
    assert read(given, make=False).batch(2)[:3] == (16, 4, 2)
    del given["train_micro_batch_size_per_gpu"]
    assert read(given, make=False).batch(2)[:3] == (16, 4, 2)
    none = {"optimizer": {"type": "SGD"}}
    assert "train_micro_batch_size_per_gpu" in refused(none)
    assert read(none, make=False, auto={"train_batch_size": 6}).batch(2)[:3] == (6, 3, 1)


def test_what_is_given_twice_must_be_the_same():
    assert "leave one out" in refused(PLAIN, auto={"lr": 0.02})
    assert read(PLAIN, make=False, auto={"lr": 0.01}).optimizer.params == {"lr": 0.01}
    assert "Did you mean 'betas'?" in refused(PLAIN, auto={"beta": 1})


def test_every_open_key_is_filled_or_asked_for():
    for path, entry in auto.OPEN.items():
        config = with_key(path, "auto")
        if path.startswith("scheduler"):
            config["scheduler"]["type"] = "WarmupDecayLR"
            config["scheduler"]["params"].setdefault("total_num_steps", 10)
        if path.endswith(".learning_rate"):
            del config["optimizer"]["params"]
            config["optimizer"]["params"] = {"learning_rate": "auto"}
        if entry.value is auto.ASK:
            if path == "train_micro_batch_size_per_gpu":
                del config["train_batch_size"]
            assert "which nobody has said" in refused(config), path
        else:
            assert headings(read(config, make=False))[path] == table.AUTO


# ---- defaults and formulas ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, params, expected",
    [
        ("AdamW", {}, {"weight_decay": 0.0, "epsilon": 1e-8, "learning_rate": 0.001}),
        ("AdamW", {"torch_adam": True}, {"weight_decay": 0.01}),
        ("Adam", {"torch_adam": True, "adam_w_mode": False}, {"weight_decay": 0.0}),
        ("Adam", {"adam_w_mode": False}, {"adam_w_mode": False}),
        ("AdamW", {"adam_w_mode": False}, {"adam_w_mode": True}),
        ("OneBitAdam", {"freeze_step": 9, "bias_correction": True}, {"bias_correction": False}),
        ("Lamb", {}, {"max_coeff": 10.0, "min_coeff": 0.01, "epsilon": 1e-8}),
        ("OneBitLamb", {"coeff_beta": 0.9}, {"bias_correction": False}),
        ("SGD", {}, {"learning_rate": 0.001, "momentum": 0.0}),
        ("Lion", {}, {"beta_2": 0.999, "learning_rate": 0.001}),
        ("Adagrad", {}, {"learning_rate": 0.01, "epsilon": 1e-10}),
    ],
)
def test_names_of_deepspeed_have_its_defaults(name, params, expected):
    config = read({"train_batch_size": 2, "optimizer": {"type": name, "params": params}})
    optimizer = build_optimizer(config, config.batch(1))
    found = optimizer.get_config()
    assert {key: pytest.approx(found[key]) for key in expected} == expected


def test_gradient_clipping_has_deepspeeds_default_with_its_optimizers_alone():
    assert read(PLAIN, make=False).gradient_clipping == 1.0
    assert read({**PLAIN, "gradient_clipping": 0}, make=False).gradient_clipping == 0
    for name in ("GSNRAdam", "keras.AdamW"):
        config = {**PLAIN, "optimizer": {"type": name}}
        assert read(config, make=False).gradient_clipping == 0


@pytest.mark.parametrize(
    "name", ["RMSprop", "NAdam", "Muon", "MuAdam", "LBFGS", "Adafactor", "adadelta"]
)
def test_rules_of_other_formulas_are_refused_with_a_way_out(name):
    message = refused({"train_batch_size": 2, "optimizer": {"type": name, "params": {"a": 1}}})
    assert f"optimizer.type: {name!r} of DeepSpeed is not supported" in message
    assert message.count("\n") == 1


def test_keras_own_is_there_by_its_full_name():
    config = read({"train_batch_size": 2, "optimizer": {"type": "keras.AdamW"}})
    assert build_optimizer(config, config.batch(1)).weight_decay == 0.004


def adam(theta, g, s, t, p):
    if not p.get("adam_w_mode", True):
        g = g + p["weight_decay"] * theta
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    one, two = (1 - 0.9**t, 1 - 0.999**t) if p.get("bias_correction", True) else (1, 1)
    step = s["m"] / one / (np.sqrt(s["v"] / two) + 1e-8)
    if p.get("adam_w_mode", True):
        step = step + p["weight_decay"] * theta
    return theta - 0.1 * step


def lamb(theta, g, s, t, p):
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
    step = s["m"] / (np.sqrt(s["v"]) + 1e-8) + p["weight_decay"] * theta
    ratio = np.linalg.norm(theta) / np.linalg.norm(step)
    ratio = min(max(ratio, p.get("min_coeff", 0.01)), p.get("max_coeff", 10.0))
    rate = 0.1
    if p.get("bias_correction", True):
        rate *= np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return theta - rate * ratio * step


def sgd(theta, g, s, t, p):
    g = g + p["weight_decay"] * theta
    if "momentum" in p:
        mean = p["momentum"] * s.get("m", 0) + (1 - p.get("dampening", 0)) * g
        s["m"] = g if t == 1 else mean
        g = g + p["momentum"] * s["m"] if p.get("nesterov") else s["m"]
    return theta - 0.1 * g


def lion(theta, g, s, t, p):
    m = s.get("m", 0)
    c = 0.9 * m + 0.1 * g
    s["m"] = 0.999 * m + 0.001 * g
    return theta * (1 - 0.1 * p["weight_decay"]) + np.where(c > 0, -0.1, 0.1)


def adagrad(theta, g, s, t, p):
    g = g + p["weight_decay"] * theta
    s["v"] = s.get("v", 0) + g**2
    rate = 0.1 / (1 + (t - 1) * p.get("lr_decay", 0))
    first = p.get("initial_accumulator_value", 0)
    return theta - rate * g / (np.sqrt(s["v"] + first) + 1e-10)


@pytest.mark.parametrize(
    "name, rule, params",
    [
        ("Adam", adam, {}),
        ("Adam", adam, {"adam_w_mode": False}),
        ("Adam", adam, {"bias_correction": False}),
        ("Lamb", lamb, {}),
        ("Lamb", lamb, {"bias_correction": False, "max_coeff": 0.3}),
        ("Lamb", lamb, {"min_coeff": 2.0}),
        ("SGD", sgd, {}),
        ("SGD", sgd, {"momentum": 0.9}),
        ("SGD", sgd, {"momentum": 0.9, "dampening": 0.5}),
        ("SGD", sgd, {"momentum": 0.9, "nesterov": True}),
        ("Lion", lion, {}),
        ("Adagrad", adagrad, {}),
        ("Adagrad", adagrad, {"lr_decay": 0.5, "initial_accumulator_value": 0.3}),
    ],
)
def test_its_rules_are_its_formulas(name, rule, params):
    params = {"weight_decay": 0.05, **params}
    config = {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0,
        "optimizer": {"type": name, "params": {"lr": 0.1, **params}},
    }
    config = read(config)
    optimizer = build_optimizer(config, config.batch(1))
    random = np.random.default_rng(0)
    start = random.normal(size=6).astype("float32")
    variable = keras.Variable(start)
    theta, slots = start.astype("float64"), {}
    for t in range(1, 6):
        # Tiny ones, too, where epsilon decides.
        parts = random.normal(size=(2, 6)) * [1, 1, 1, 1e-7, 1e-8, 0]
        for part in parts:
            optimizer.apply([keras.ops.convert_to_tensor(part.astype("float32"))], [variable])
        theta = rule(theta, parts.mean(0), slots, t, params)
        np.testing.assert_allclose(variable.numpy(), theta, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_its_optimizers_are_saved_and_loaded_with_a_model(name, tmp_path):
    kind = next(key for key, (found, _) in table.OPTIMIZERS.items() if found == name)
    params = {"momentum": 0.9} if kind == "sgd" else {}
    config = read({"train_batch_size": 2, "optimizer": {"type": kind, "params": params}})
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(build_optimizer(config, config.batch(1)), loss="mse")
    x, y = np.ones((2, 3)), np.ones((2, 1))
    model.train_on_batch(x, y)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for one in (model, loaded):
        one.train_on_batch(x, y)
    for mine, other in zip(model.variables, loaded.variables):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())


# ---- commands and initialize -----------------------------------------------------------------


def chain():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


DATA = (np.ones((8, 3), "float32"), np.ones((8, 1), "float32"))


def test_check_prints_every_value_that_is_a_default(tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 8, "zero_optimization": {"stage": 3}}))
    assert cli.main(["config", "check", str(path), "--np", "2"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for value in ("epsilon=1e-08", "weight_decay=0.0", "bias_correction=True", "before it was 0"):
        assert value in told
    assert Kind.OTHER_ROUNDING.value in told and table.DEFAULT in told
    assert cli.main(["config", "check", str(path), "--strict"]) == 1
    assert cli.main(["config", "check", str(path), "--auto", "lr"]) == 1


def test_check_takes_what_auto_stands_for(tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(TRAINER))
    entries = [word for k, v in GIVEN.items() for word in ("--auto", f"{k}={v}")]
    assert cli.main(["config", "check", str(path), *entries]) == 0
    assert table.NEEDED not in capsys.readouterr().out
    assert cli.main(["config", "check", str(path)]) == 0
    assert table.NEEDED in capsys.readouterr().out


def test_convert_writes_a_file_that_runs_alike_with_a_line_for_each_decision(tmp_path, capsys):
    path, other = tmp_path / "ds.json", tmp_path / "ours.json"
    values = {**PLAIN, "zero_optimization": {"stage": 3, "overlap_comm": True}, "aio": {}}
    path.write_text(json.dumps(values))
    assert cli.main(["config", "convert", str(path)]) == 0
    text = capsys.readouterr().out
    for key in ("zero_optimization.stage", "zero_optimization.overlap_comm", "aio"):
        assert len(re.findall(rf"^//   {re.escape(key)}: \S", text, re.M)) == 1
    other.write_text(text)
    assert read(other).model_dump() == read(path).model_dump()
    assert read(other, strict=True).decisions == ()


def test_convert_leaves_open_what_only_the_caller_knows(tmp_path, capsys):
    path, other = tmp_path / "ds.json", tmp_path / "ours.json"
    path.write_text(json.dumps(TRAINER))
    assert cli.main(["config", "convert", str(path)]) == 0
    other.write_text(capsys.readouterr().out)
    assert read(other, auto=GIVEN).model_dump() == read(path, auto=GIVEN).model_dump()


def test_a_job_tells_once_what_it_decided(caplog):
    values = {**PLAIN, "zero_optimization": {"stage": 3, "overlap_comm": True}}
    initialize(chain(), values, "mse")
    told = [record.message for record in caplog.records if "configuration" in record.message]
    assert len(told) == 1
    assert "zero_optimization.overlap_comm" in told[0] and "4 bytes" in told[0]


def test_an_optimizer_that_is_given_takes_the_place_of_the_files():
    values = {**PLAIN, "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 2}}}
    engine = initialize(
        chain(), values, "mse", training_data=DATA, optimizer=keras.optimizers.Adam(0.5)
    )
    assert type(engine.optimizer).__name__ == "DistributedAdam"
    rates = []
    for _ in range(5):
        engine.train_batch()
        rates += engine.get_lr()
    assert rates[-1] == pytest.approx(0.5)


def test_a_schedule_that_is_given_takes_the_place_of_the_files():
    halves = keras.optimizers.schedules.ExponentialDecay(0.4, 1, 0.5)
    values = {**PLAIN, "scheduler": {"type": "WarmupLR"}}
    engine = initialize(chain(), values, "mse", training_data=DATA, lr_scheduler=halves)
    engine.train_batch()
    assert engine.get_lr() == [pytest.approx(0.2)]


@pytest.mark.parametrize(
    "optimizer, told",
    [
        ("adam", "must be a keras.optimizers.Optimizer"),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "must be the plain one"),
    ],
)
def test_an_optimizer_that_cannot_be_taken_is_refused(optimizer, told):
    with pytest.raises(ConfigError, match=told):
        initialize(chain(), PLAIN, "mse", optimizer=optimizer)


def test_the_policy_of_the_model_says_what_auto_precision_is():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, dtype="mixed_float16")])
    engine = initialize(model, {**PLAIN, "fp16": {"enabled": "auto"}}, "mse")
    assert engine.config.fp16.enabled
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, dtype="mixed_float16")])
    engine = initialize(model, {**PLAIN, "fp16": {"enabled": False}}, "mse")
    assert not engine.config.fp16.enabled
    assert not initialize(chain(), {**PLAIN, "fp16": {"enabled": "auto"}}, "mse").loss_scale
