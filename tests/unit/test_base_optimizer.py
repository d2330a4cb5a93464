"""With gamma = ceiling = 1 every optimizer is its base optimizer, and
DistributedOptimizer is what it wraps."""

import itertools

import keras
import numpy as np
import pytest

import gsnr_tf
from tests.problems import (
    EVERYTHING,
    OPTIMIZERS,
    PROBLEMS,
    assert_close,
    assert_same,
    feed,
    values,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
NOT_RULES = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
if keras.__version__.startswith("3.12."):
    # It asks a tf.Variable for its `path`, so TensorFlow cannot train with it.
    NOT_RULES.add("Muon")
RULES = [
    rule
    for rule in vars(keras.optimizers).values()
    if isinstance(rule, type)
    and issubclass(rule, keras.optimizers.Optimizer)
    and rule.__name__ not in NOT_RULES
]
OPTIONS = {
    "plain": {},
    "decay and clipnorm": {"weight_decay": 0.05, "clipnorm": 0.5},
    "global clipnorm": {"global_clipnorm": 0.5, "loss_scale_factor": 2.0},
    "averages": {
        "clipvalue": 0.125,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
    },
}


def coarse(problem, k=2):
    """The problem with samples of few digits, of which every mean of two is exact."""
    samples = [
        [[np.round(g * 16) / 16 for g in sample] for sample in update[:k]]
        for update in problem.samples
    ]
    return problem._replace(samples=samples)


def trained(optimizer, problem):
    variables = problem.variables()
    for samples in problem.samples:
        feed(optimizer, variables, samples)
    return values(variables)


@pytest.mark.parametrize("decay", [None, 0.1])
@pytest.mark.parametrize(
    "momentum, nesterov, estimator",
    [(0.0, False, "paper"), (0.9, False, "robust"), (0.9, True, "paper")],
)
def test_sgd_to_the_bit(momentum, nesterov, estimator, decay):
    arguments = {
        "learning_rate": 0.1,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": decay,
        "gradient_accumulation_steps": 2,
    }
    assert_same(
        trained(
            gsnr_tf.GSNRSGD(gamma=1.0, estimator=estimator, **arguments),
            coarse(EVERYTHING),
        ),
        trained(keras.optimizers.SGD(**arguments), coarse(EVERYTHING)),
    )


# Keras' Adam adds epsilon to the root before the bias correction of the second moment;
# an epsilon that is nothing beside the gradients (and not 0: some are) hides that.
@pytest.mark.parametrize("second_moment", ["adapted", "raw"])
def test_adamw(second_moment):
    arguments = {
        "learning_rate": 0.1,
        "weight_decay": 0.1,
        "epsilon": 1e-12,
        "gradient_accumulation_steps": 2,
    }
    problem = coarse(EVERYTHING)
    ours = gsnr_tf.GSNRAdam(gamma=1.0, second_moment=second_moment, **arguments)
    assert_close(
        trained(ours, problem),
        trained(keras.optimizers.AdamW(**arguments), problem),
        rtol=1e-6,
        atol=3e-7,
    )


def test_nadam():
    arguments = {"learning_rate": 0.1, "epsilon": 1e-12, "weight_decay": 0.1}
    problem = coarse(EVERYTHING)
    problem = problem._replace(samples=problem.samples * 10)
    ours = gsnr_tf.GSNRNadam(gamma=1.0, gradient_accumulation_steps=2, **arguments)
    # Keras counts Nadam's own steps by micro-batch: it gets the means.
    means = [[[np.mean(g, axis=0) for g in zip(*update)]] for update in problem.samples]
    plain = keras.optimizers.Nadam(**arguments)
    assert_close(
        trained(ours, problem),
        trained(plain, problem._replace(samples=means)),
        rtol=1e-6,
        atol=3e-6,
    )


@pytest.mark.parametrize("estimator", ["paper", "robust"])
@pytest.mark.parametrize("name", ["GSNRAdam", "GSNRLamb"])
def test_a_multiplier_of_one_averages_to_exactly_one(name, estimator):
    optimizer = getattr(gsnr_tf, name)(
        gamma=1.0, gradient_accumulation_steps=2, estimator=estimator
    )
    trained(optimizer, coarse(PROBLEMS["model"]))
    for multiplier in values(optimizer._slots["multiplier"]):
        assert np.all(multiplier == 1)


def test_lamb():
    arguments = {"learning_rate": 0.1, "gradient_accumulation_steps": 2}
    problem = coarse(EVERYTHING)
    ours = gsnr_tf.GSNRLamb(gamma=1.0, exclude_from_layer_adaptation=[], **arguments)
    assert_close(
        trained(ours, problem),
        trained(keras.optimizers.Lamb(epsilon=1e-6, **arguments), problem),
        rtol=1e-6,
        atol=3e-7,
    )


def test_lars():
    problem = PROBLEMS["matrix"]
    theta, m = problem.weights[0].astype("float64"), 0.0
    for samples in problem.samples:
        g = np.mean([sample[0] for sample in samples], axis=0, dtype="float64")
        length = np.linalg.norm(theta)
        phi = 0.25 * length / (np.linalg.norm(g) + 0.1 * length)
        m = 0.9 * m + 0.5 * phi * (g + 0.1 * theta)
        theta = theta - m
    ours = OPTIMIZERS["lars"].make(
        gamma=1.0, weight_decay=0.1, gradient_accumulation_steps=len(samples)
    )
    assert_close(trained(ours, problem), [theta], rtol=2e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_distributed_optimizer_is_what_it_wraps(rule):
    problem = coarse(PROBLEMS["model"], k=2)
    for steps, option in itertools.product([None, 2], OPTIONS):
        if steps and option == "averages":
            continue  # Keras moves its averages at every micro-batch, we at every update.
        arguments = {"gradient_accumulation_steps": steps, **OPTIONS[option]}
        plain = trained(rule(**arguments), problem)
        assert all(np.isfinite(w).all() for w in plain)
        ours = trained(gsnr_tf.DistributedOptimizer(rule(**arguments)), problem)
        assert_same(ours, plain, (option, steps))


def test_distributed_optimizer_keeps_exclusions_and_schedules():
    class Falling(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5 / (1.0 + keras.ops.cast(step, "float32"))

        def get_config(self):
            return {}

    def make():
        rule = keras.optimizers.SGD(learning_rate=Falling(), weight_decay=0.5)
        rule.exclude_from_weight_decay(var_names=["bias"])
        return rule

    problem = coarse(PROBLEMS["model"])
    assert_same(trained(gsnr_tf.DistributedOptimizer(make()), problem), trained(make(), problem))


def test_distributed_optimizer_takes_a_learning_rate_that_was_set_later():
    rule = keras.optimizers.SGD(0.5)
    rule.learning_rate = 0.25
    assert float(gsnr_tf.DistributedOptimizer(rule).learning_rate) == 0.25
