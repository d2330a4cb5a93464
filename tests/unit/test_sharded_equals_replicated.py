"""Whatever the shapes, ranks and hosts, and whoever lacks a gradient: both exchanges agree.

Ranks are threads here, and their Horovod is a stand-in that exchanges tensors among them, so
that the communicator itself is tested as well.
"""

import contextlib
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnr_tf.comm import exchange_plan, horovod
from gsnr_tf.optimizers.sampling import SamplingPlan
from gsnr_tf.rules.adam import Adam
from gsnr_tf.rules.lamb import Lamb
from gsnr_tf.rules.settings import Settings, VariableSettings
from gsnr_tf.rules.sgd import SGD
from gsnr_tf.sharding.buckets import BucketLayout
from gsnr_tf.sharding.replicated import Replicated
from gsnr_tf.sharding.sharded import Sharded
from gsnr_tf.sharding.slots import ReplicatedSlots
from gsnr_tf.sharding.update import Update
from gsnr_tf.stats import Moments
from gsnr_tf.stats.sparse import Rows, SparseMoments

SECONDS = 30
UPDATES = 2


class World:
    """Threads that exchange values, each at the same points in the same order."""

    def __init__(self, hosts):
        self.places = [(host, local) for host, n in enumerate(hosts) for local in range(n)]
        self._barrier = threading.Barrier(len(self.places), timeout=SECONDS)
        self._given = [None] * len(self.places)

    def exchange(self, rank, name, value):
        """What all ranks gave, in order; they must have come under one name."""
        self._given[rank] = (name, value)
        self._barrier.wait()
        names, values = zip(*self._given)
        self._barrier.wait()
        assert len(set(names)) == 1, names
        return list(values)

    def horovod(self, rank):
        """What rank `rank` takes for `horovod.tensorflow`."""

        def allreduce(tensor, op, name, **_):
            return tf.add_n(self.exchange(rank, name, tensor))

        def allgather(tensor, name, **_):
            return tf.concat(self.exchange(rank, name, tensor), axis=0)

        def alltoall(tensor, splits, name, **_):
            sent = self.exchange(rank, name, (tensor, list(splits)))
            parts = [tf.split(tensor, splits)[rank] for tensor, splits in sent]
            return tf.concat(parts, axis=0), tf.stack([tf.shape(part)[0] for part in parts])

        host, local = self.places[rank]
        return types.SimpleNamespace(
            rank=lambda: rank,
            size=lambda: len(self.places),
            cross_rank=lambda: host,
            local_rank=lambda: local,
            cross_size=lambda: len({h for h, _ in self.places}),
            local_size=lambda: sum(h == host for h, _ in self.places),
            is_homogeneous=lambda: len({sum(h == k for h, _ in self.places)
                                        for k, _ in self.places}) == 1,
            Sum="sum",
            allreduce=allreduce,
            allgather=allgather,
            alltoall=alltoall,
            allgather_object=lambda value, name: self.exchange(rank, name, value),
        )  # fmt: skip

    def run(self, of_rank):
        """What `of_rank(rank)` returns on each, as threads that run side by side."""
        results, failures = [None] * len(self.places), []
        mine = threading.local()
        loaded, horovod.load = horovod.load, lambda: mine.horovod

        def body(rank):
            mine.horovod = self.horovod(rank)
            try:
                results[rank] = of_rank(rank)
            except BaseException as failure:
                failures.append(failure)
                self._barrier.abort()

        threads = [threading.Thread(target=body, args=[r]) for r in range(len(self.places))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            horovod.load = loaded
        # Those that waited for the one that failed say no more.
        failures.sort(key=lambda f: isinstance(f, threading.BrokenBarrierError))
        if failures:
            raise failures[0]
        return results


class Case(types.SimpleNamespace):
    """One problem: shapes, the samples of all ranks, and the rule."""

    def variables(self):
        rng = np.random.default_rng(0)
        return [tf.Variable(rng.normal(size=shape).astype("float32")) for shape in self.shapes]

    def moments(self, layout, rank, update):
        rng = np.random.default_rng([rank, update])
        sample = [
            self.gradient(rng, shape, is_table) if has[rank] else None
            for shape, has, is_table in zip(self.shapes, self.having, self.is_table)
        ]
        weight = tf.constant(self.weights[rank], "float32")
        found = []
        for part in layout.pack(sample):
            values = part.values if isinstance(part, Rows) else part
            m2 = tf.constant(rng.uniform(size=values.shape), "float32") if self.keeps_m2 else None
            if isinstance(part, Rows):
                found.append(SparseMoments(weight, part.keys, values, m2))
            else:
                found.append(Moments(weight, values, m2))
        return found

    @staticmethod
    def gradient(rng, shape, is_table):
        if not is_table:
            return tf.constant(rng.normal(1.0, 0.5, size=shape), "float32")
        ids = rng.integers(0, shape[0], rng.integers(0, 9))
        rows = rng.normal(1.0, 0.5, size=[len(ids), *shape[1:]])
        return tf.IndexedSlices(tf.constant(rows, "float32"), tf.constant(ids))

    def trained(self, sharded, gathered=False):
        world = World(self.hosts)
        ranks = len(world.places)
        by_host = sharded and len(self.hosts) > 1
        plan = SamplingPlan(
            sample="micro_batch",
            workers=ranks,
            hosts=len(self.hosts) if by_host else 1,
            sharded=sharded,
            gathered=gathered,
            keeps_m2=self.keeps_m2,
        )

        def of_rank(rank):
            communicator = horovod.HorovodCommunicator()
            communicator.peers = lambda served: None
            # Threads would wait for each other in the lock of a `cached_property`.
            vars(communicator)["_ways"] = type(communicator)._ways.func(communicator)
            if by_host:
                assert communicator.hosts == len(self.hosts)
                communicator.exchange_by_host()
            variables = self.variables()
            layout = BucketLayout(variables, 400, self.by_row, self.is_table)
            if sharded:
                exchange = Sharded(
                    communicator, layout, variables, self.rule.slots, plan, "float32", "a"
                )
            else:
                slots = {
                    name: [tf.Variable(tf.zeros_like(v)) for v in variables]
                    for name in self.rule.slots
                }
                slots = ReplicatedSlots(slots, layout)
                exchange = Replicated(communicator, layout, variables, slots, "a", gathered)
            exchange.compiled = False
            own = [
                VariableSettings(0.1, 0.05, len(shape) > 1, by_row)
                for shape, by_row in zip(self.shapes, self.by_row)
            ]
            # With m2 each rank stands for two micro-batches.
            k = ranks * (2 if self.keeps_m2 else 1)
            program = Update(self.rule, self.settings, own, exchange, lambda: k)
            active = [any(has) for has in self.having]
            for number in range(UPDATES):
                moments = self.moments(layout, rank, number)
                finite, statistics, _ = program.reduce(moments, True, tf.zeros([0]))
                assert bool(finite)
                program.apply(active, statistics, tf.constant(0.1), tf.constant(number + 1.0))
                program.end()
            return [variable.numpy() for variable in variables]

        return world.run(of_rank)


shapes = st.one_of(
    st.tuples(st.integers(1, 300)),
    st.tuples(st.integers(1, 40), st.integers(1, 20)),
    st.just(()),
)
rules = st.sampled_from([SGD(momentum=0.9), Adam(), Adam(beta_3=0.0), Lamb()])


@st.composite
def cases(draw):
    hosts = draw(st.sampled_from([[2], [3], [5], [1, 1], [2, 2], [3, 3], [2, 1]]))
    ranks = sum(hosts)
    of_variables = draw(st.lists(shapes, min_size=1, max_size=5))
    having = [draw(st.lists(st.booleans(), min_size=ranks, max_size=ranks)) for _ in of_variables]
    rows = draw(st.booleans())
    return Case(
        hosts=hosts,
        shapes=of_variables,
        having=having,
        weights=draw(st.lists(st.integers(1, 5), min_size=ranks, max_size=ranks)),
        keeps_m2=draw(st.booleans()),
        rule=draw(rules),
        by_row=[rows and len(shape) == 2 for shape in of_variables],
        is_table=[len(shape) == 2 and draw(st.booleans()) for shape in of_variables],
        settings=Settings(
            estimator=draw(st.sampled_from(["paper", "robust", "james_stein"])),
            ceiling=10.0,
            l2_form=draw(st.sampled_from(["inside", "outside", "gated"])),
            global_clipnorm=draw(st.sampled_from([None, 1.0])),
        ),
    )


@contextlib.contextmanager
def by_host_wherever_there_are_hosts():
    many, exchange_plan._MANY_ON_A_HOST = exchange_plan._MANY_ON_A_HOST, 1
    try:
        yield
    finally:
        exchange_plan._MANY_ON_A_HOST = many


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(cases())
def test_weights_are_the_same(case):
    if len(set(case.hosts)) > 1 or case.hosts == [1, 1]:
        case.hosts = [sum(case.hosts)]  # these exchange all at once
    with by_host_wherever_there_are_hosts():
        replicated, sharded = case.trained(sharded=False), case.trained(sharded=True)
    gathered = case.trained(sharded=False, gathered=True)
    for found in (sharded, gathered):
        for other in found[1:]:
            for one, same in zip(found[0], other):
                np.testing.assert_array_equal(one, same)
        for one, expected in zip(found[0], replicated[0]):
            np.testing.assert_allclose(one, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("is_table", [False, True])
def test_a_wrong_share_is_found(is_table):
    """That the comparison can fail: a rank whose weight is not told."""
    case = Case(
        hosts=[2],
        shapes=[(30, 4)],
        having=[[True, True]],
        weights=[1, 3],
        keeps_m2=False,
        rule=SGD(),
        by_row=[False],
        is_table=[is_table],
        settings=Settings(),
    )
    right = case.trained(sharded=True)
    case.weights = [1, 1]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(case.trained(sharded=True)[0][0], right[0][0], rtol=2e-4)
