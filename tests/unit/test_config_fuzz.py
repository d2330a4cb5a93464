"""Whatever a configuration holds, it is used or refused, in words that fit on a screen."""

import copy
import json
import math
import random

import pytest

from gsnr_tf.engine import ConfigError, explain, read
from gsnr_tf.engine.deepspeed import auto, table

MUTANTS = 3600
FULL = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": "auto",
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"warmup_num_steps": 10, "total_num_steps": 100, "warmup_max_lr": "auto"},
    },
    "gradient_clipping": 1.0,
    "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2},
    "bf16": {"enabled": False},
    "zero_optimization": {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 5e8},
    "communication_data_type": "fp32",
    "steps_per_print": 100,
    "tensorboard": {"enabled": False, "output_path": "runs", "job_name": "a"},
    "flops_profiler": {"enabled": True, "profile_step": 3},
    "elasticity": {"enabled": False},
    "amp": {"enabled": False},
    "gsnr": {"shuffle_seed": 1},
}
OF_THE_FAMILY = {
    **FULL,
    "optimizer": {"type": "GSNRLamb", "params": {"lr": 0.01, "weight_decay": {"kernel": 0.1}}},
    "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0, "cycle_max_lr": 1}},
    "gsnr": {"gamma": 0.5, "batch_ramp": {"max_train_batch_size": 4096}},
}


def nested(depth):
    found = 1
    for _ in range(depth):
        found = {"a": found} if depth % 2 else [found]
    return found


NASTY = [
    None, True, False, 0, 1, -1, 3, 7, 0.5, -0.5, -0.0, 1e-320, 1e308, 2**63, -(2**63), 10**400,
    10**4400, math.inf, -math.inf, math.nan, "", "auto", "AUTO", "1", "1e-3", "true", "nan",
    "a" * 10**5, "\x00", "a\x00b", "\ud800", "\u202e\x1b[31m", "ü\n\n" * 50, [], [1], [[]], {},
    {"enabled": True}, {"enabled": "auto"}, {"type": "AdamW"}, {"": 1}, {"\ud800": 1}, {1: 2},
    [math.nan, 1], [0.9], [0.9, 2.0], [10**400, 1], list(range(10**4)), nested(50), nested(51),
    {str(i): i for i in range(500)}, b"bytes", object(), {"a"}, 1j, lambda: 1,
    {"params": {}}, {"type": "keras.SGD"}, {"type": None}, {"stage": True}, {"stage": 3.0},
]  # fmt: skip
KEYS = [
    "nonsense", "", "\ud800", "a" * 10**4, "train_batch_sise", "_comment", "gsnr", "optimizer",
    *(key.split(".")[-1] for key in [*table.KEYS, *auto.OPEN]),
    *(key for key in table.KEYS if "." not in key), 1, None, (1, 2),
]  # fmt: skip


def places(values, at=()):
    yield at
    if isinstance(values, dict):
        for key, value in values.items():
            yield from places(value, (*at, key))


def mutated(chance, start):
    """A copy with one to three things changed, added or taken away."""
    values = copy.deepcopy(start)
    for _ in range(chance.randint(1, 3)):
        at = chance.choice(list(places(values)))
        if not at:
            values[chance.choice(KEYS)] = chance.choice(NASTY)
            continue
        holder = values
        for key in at[:-1]:
            holder = holder[key]
        how = chance.random()
        if how < 0.1:
            del holder[at[-1]]
        elif how < 0.3 and isinstance(holder[at[-1]], dict):
            holder[at[-1]][chance.choice(KEYS)] = chance.choice(NASTY)
        else:
            holder[at[-1]] = chance.choice(NASTY)
    return values


def check(source, make=False):
    """Reads it; `False` where it was refused, in words that fit on a screen."""
    try:
        config = read(source, make=make, ranks=2, needed=False)
        for row in explain(config, 2, rates=False):
            str(row)
        return True
    except ConfigError as error:
        told = str(error)
    assert len(told.splitlines()) <= 60 and len(told) < 20_000, told
    assert all(len(line) <= 500 for line in told.splitlines())
    told.encode()
    assert "\x1b" not in told and "\x00" not in told
    return False


@pytest.mark.parametrize("part", range(6))
def test_dicts(part):
    chance = random.Random(part)
    used = 0
    for number in range(MUTANTS // 12):
        # Making what is described takes longest.
        used += check(mutated(chance, chance.choice([FULL, OF_THE_FAMILY])), number % 10 == 0)
    assert 0 < used < MUTANTS // 12


@pytest.mark.parametrize("part", range(6))
def test_texts(part, tmp_path):
    chance = random.Random(100 + part)
    path, used = tmp_path / "config.json", 0
    text = json.dumps(FULL, indent=1)
    pieces = ["{", "}", "[", "]", ",", ":", '"', "\\", "//", "#", "NaN", "-Infinity", "1e400",
              "9" * 5000, "\x00", "\ufeff", "\\ud800", "\n", "'", "null", "/*", "é", "[" * 3000,
              '{"a":' * 3000, "-", "0x1", "1_0", "truefalse"]  # fmt: skip
    for _ in range(MUTANTS // 12):
        changed = text
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(changed))
            to = at + chance.choice([0, 0, 1, 5, 40])
            changed = changed[:at] + chance.choice(pieces) + changed[to:]
        path.write_bytes(changed.encode("utf-8", "surrogatepass"))
        used += check(path)
    assert 0 < used < MUTANTS // 12


@pytest.mark.parametrize("name", ["a\x00b", "\ud800", "x" * 5000, "", ".", "/nowhere/c.json"])
def test_paths(name):
    assert not check(name)


@pytest.mark.parametrize("raw", [None, 1, [], "", b"", object(), nested(2000), {"a": nested(5000)}])
def test_what_is_no_object(raw):
    assert not check(raw)


@pytest.mark.parametrize(
    "name", ["\x00", "\ud800", "a" * 10**4, "keras.", "keras.keras.SGD", "Optimizer", "keras.Adam "]
)
def test_names_of_optimizers(name):
    assert not check({"train_batch_size": 2, "optimizer": {"type": name}})


@pytest.mark.parametrize("text", ["", " ", "\x00", "[" * 10**5, '{"a":' * 10**5, "9" * 5000])
def test_files_of_nothing_and_of_too_much(text, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(text)
    assert not check(path)


def test_a_file_of_bytes_is_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(bytes(range(256)))
    assert not check(path)
    assert not check(tmp_path)
