"""SIGTERM during `fit`: the update ends, all is saved, and a second start goes on."""

import os
import signal

import keras
import numpy as np
import pytest

import gsnr_tf
from gsnr_tf.resilience import checkpoint, preemption

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
STEPS = 6  # micro-batches of an epoch


class Terminate(keras.callbacks.Callback):
    """Sends SIGTERM to this process in a batch of an epoch; notes what was trained."""

    def __init__(self, epoch=None, batch=None):
        super().__init__()
        self.at, self.seen = (epoch, batch), []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append((self.epoch, batch))
        if (self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def make_model(window=2, built=True):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,))] if built else []
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=window)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def fit(model, folder, terminate, epochs=3, **options):
    save = gsnr_tf.callbacks.SaveOnPreemption(folder, **options)
    trainer = options.get("engine", model)
    trainer.fit(
        X, X[:, :1], batch_size=8, epochs=epochs, shuffle=False, verbose=0,
        callbacks=[terminate, save],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def handler():
    """SIGTERM must do after `fit` what it did before."""
    mine = signal.signal(signal.SIGTERM, lambda *_: None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, mine)


def preempted(*arguments, **options):
    with pytest.raises(SystemExit) as ended:
        fit(*arguments, **options)
    assert ended.value.code == preemption.EXIT_CODE == 75


@pytest.mark.parametrize(
    ("batch", "last", "goes_on"), [(1, 1, (1, 0)), (2, 3, (1, 0)), (5, 5, (2, 0))]
)
def test_the_update_is_finished_and_the_next_start_goes_on(tmp_path, batch, last, goes_on, capfd):
    terminate, model = Terminate(1, batch), make_model()
    preempted(model, tmp_path / "s", terminate)
    assert terminate.seen[-1] == (1, last)
    assert "Start the same command to go on" in capfd.readouterr().err
    saved = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]

    again, undisturbed = make_model(), Terminate()
    restored = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            found = [*again.variables, *again.optimizer.variables]
            restored.append([v.numpy() for v in found])

    save = gsnr_tf.callbacks.SaveOnPreemption(tmp_path / "s")
    history = again.fit(
        X, X[:, :1], batch_size=8, epochs=3, verbose=0, shuffle=False,
        callbacks=[undisturbed, save, Look()],
    )  # fmt: skip
    for value, expected in zip(restored[0], saved, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert undisturbed.seen[0] == goes_on and undisturbed.seen[-1] == (2, STEPS - 1)
    assert history.epoch == list(range(goes_on[0], 3))
    # It has ended in good order: another start begins, and so does another `fit`.
    assert checkpoint.locate(tmp_path / "s") is None
    anew = Terminate()
    fit(again, tmp_path / "s", anew, epochs=1)
    assert anew.seen[0] == (0, 0)


def test_a_training_that_is_over_when_it_is_told_goes_on_behind_fit(tmp_path):
    preempted(make_model(), tmp_path, Terminate(2, STEPS - 1))
    nothing = Terminate()
    fit(make_model(), tmp_path, nothing)
    assert nothing.seen == []


def test_without_a_signal_nothing_is_saved(tmp_path):
    terminate = Terminate()
    fit(make_model(), tmp_path / "s", terminate)
    assert len(terminate.seen) == 3 * STEPS
    assert not (tmp_path / "s").exists()


def test_the_engine_saves_in_its_own_form(tmp_path):
    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        config = {
            "train_batch_size": 16,
            "gradient_accumulation_steps": 2,
            "optimizer": {"type": "GSNRAdam", "params": {"lr": 0.01}},
        }
        return gsnr_tf.initialize(model=model, config=config, loss="mse")

    engine = make()
    preempted(engine.model, tmp_path, Terminate(1, 2), engine=engine)
    updates = engine.global_steps
    assert updates == (STEPS + 4) // 2
    again, seen = make(), Terminate()
    fit(again.model, tmp_path, seen, engine=again)
    assert seen.seen[0] == (1, 0)
    assert again.global_steps == updates + 2 * STEPS // 2
    assert checkpoint.locate(tmp_path) is not None


def engine_in(folder, accumulation=2):
    """An engine that saves there when it is told to end; 3 updates are an epoch."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
    config = {
        "train_batch_size": 16,
        "gradient_accumulation_steps": accumulation,
        "optimizer": {"type": "GSNRAdam", "params": {"lr": 0.01}},
    }
    return gsnr_tf.initialize(
        keras.Sequential([keras.Input((4,)), *layers]),
        config,
        loss="mse",
        training_data=(X, X[:, :1]),
        preemption_dir=folder,
    )


def assert_alike(model, other):
    for one, two in (
        (model.variables, other.variables),
        (
            model.optimizer.variables,
            other.optimizer.variables,
        ),
    ):
        for value, expected in zip(one, two, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.fixture
def ends_notice():
    """Gives SIGTERM back: an engine keeps it until its process ends."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# In the middle of an epoch, at its end, and in the last.
@pytest.mark.parametrize("updates", [4, 6, 8])
def test_the_engines_fit_goes_on_at_the_update(ends_notice, tmp_path, updates, capfd):
    whole = engine_in(None)
    whole.fit(epochs=3, verbose=0)
    engine = engine_in(tmp_path)
    with pytest.raises(SystemExit) as ended:
        # In the first micro-batch of the update, which is finished first.
        engine.fit(epochs=3, verbose=0, callbacks=[Terminate(*divmod(2 * updates - 2, 6))])
    assert ended.value.code == 75
    assert f"{tmp_path}/preempted-{updates} is saved" in capfd.readouterr().err

    again, seen = engine_in(tmp_path), Terminate()
    assert again.global_steps == updates and again.global_samples == 16 * updates
    again.fit(epochs=3, verbose=0, callbacks=[seen])
    assert again.global_steps == whole.global_steps == 9
    assert len(seen.seen) == 2 * (9 - updates)
    assert_alike(again.model, whole.model)
    # A second `fit` of the same process is one of its own.
    again.fit(epochs=1, verbose=0)
    assert again.global_steps == 12


def test_the_engines_fit_goes_on_with_another_division(ends_notice, tmp_path):
    engine = engine_in(tmp_path, accumulation=2)
    with pytest.raises(SystemExit):
        engine.fit(epochs=3, verbose=0, callbacks=[Terminate(1, 0)])
    again = engine_in(tmp_path, accumulation=4)
    again.fit(epochs=3, verbose=0)
    assert (again.global_steps, again.global_samples) == (9, 9 * 16)


def test_batches_of_ones_own_begin_the_epoch_anew(ends_notice, tmp_path):
    def batches():
        while True:
            yield X[:8], X[:8, :1]

    options = {"steps_per_epoch": 3, "epochs": 3, "verbose": 0}
    with pytest.raises(SystemExit):
        engine_in(tmp_path).fit(batches(), callbacks=[Terminate(1, 0)], **options)
    again, seen = engine_in(tmp_path), Terminate()
    assert again.global_steps == 4
    again.fit(batches(), callbacks=[seen], **options)
    assert seen.seen[0] == (1, 0) and again.global_steps == 4 + 6


@pytest.mark.parametrize("when", ["train", "evaluate"])
def test_the_engines_own_loop_saves_and_goes_on(ends_notice, tmp_path, when):
    whole = engine_in(None)
    losses = [whole.train_batch() for _ in range(8)]
    engine = engine_in(tmp_path)
    found = [engine.train_batch() for _ in range(5)]
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        if when == "train":
            found.append(losses[5])  # the call does not return
            engine.train_batch()
        else:
            engine.eval_batch((X, X[:, :1]))
    assert ended.value.code == 75

    again = engine_in(tmp_path)
    assert again.global_steps == len(found)
    while again.global_steps < 8:
        found.append(again.train_batch())
    assert found == losses
    assert_alike(again.model, whole.model)


def test_without_a_folder_sigterm_is_nobodys_wish():
    before = signal.getsignal(signal.SIGTERM)
    engine_in(None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_engine_that_cannot_go_on_says_so(ends_notice, tmp_path):
    engine_in(None).save_checkpoint(tmp_path)
    (tmp_path / "latest").unlink()
    with pytest.raises(gsnr_tf.resilience.CheckpointError, match="There are: global_step0"):
        engine_in(tmp_path)


def test_what_cannot_be_restored_is_refused(tmp_path):
    preempted(make_model(), tmp_path, Terminate(0, 1))
    with pytest.raises(ValueError, match=r"no variables yet.*keras\.Input"):
        fit(make_model(built=False), tmp_path, Terminate())
    model = make_model()
    model.compile(optimizer="adam", loss="mse")
    with pytest.raises(ValueError, match="Received a model compiled with Adam"):
        fit(model, tmp_path, Terminate())


def test_a_notice_is_for_the_main_thread_and_ends():
    import threading

    other = []

    def in_a_thread():
        with preemption.Notice() as notice:
            other.append(notice.received)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert other == [False]
    with preemption.Notice() as notice:
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.received
