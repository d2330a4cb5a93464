"""The ranks of a Horovod job."""

import functools
import itertools
import os

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from gsnr_tf.comm import error_file
from gsnr_tf.comm.base import Communicator, native
from gsnr_tf.comm.exchange_plan import ExchangePlan
from gsnr_tf.comm.peers import Peers, watch_together

# A rank that waits for another longer than this is told so, then stopped, unless
# the user chose otherwise: a job that hangs costs more than a job that fails.
_STALL_LIMITS = {
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1800",
}
# Gloo's own limit (30 s) ends a job whose rank is paused. An elastic one goes on without
# it, and should not wait for long.
_PAUSE_LIMIT = {"HOROVOD_GLOO_TIMEOUT_SECONDS": "300"}

# So many ranks of a host send (r+1)/2 times the bytes of an allreduce through its link
# if all ranks exchange at once, and twice as many without shards.
_FEW = 3

# Horovod knows a collective by the name of its operation, to which TensorFlow adds that of
# every scope, and Keras makes a scope of an optimizer's name, which it counts up in each
# process.
_OUR_NAME = {"ignore_name_scope": True}

# How many optimizers have met their like on other ranks, in this process.
_introduced = 0

# Whether the ranks of an elastic job have met. One that comes late must not issue a
# collective before: the others are elsewhere, and it would wait alone.
_met = False


def elastic():
    """Whether horovodrun started this process in an elastic job."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def together():
    """Whether collectives may be issued: always, but in elastic jobs on the way."""
    return _met or not elastic()


def set_together(met):
    """Tells that the ranks of an elastic job have met, or part."""
    global _met
    _met = met


def launched():
    """Whether a launcher started this process as one of several ranks."""
    sizes = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    return any(int(os.environ.get(size, "1")) > 1 for size in sizes)


def imported():
    """Returns `horovod.tensorflow`.

    Raises:
        ImportError: Horovod is missing, or was built without TensorFlow.
    """
    try:
        import horovod.tensorflow as hvd
    except Exception as error:
        # Built for another framework or another TensorFlow, its loader fails in
        # many ways, not all of them an ImportError.
        raise ImportError(
            "Horovod was asked for, but horovod.tensorflow cannot be imported "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). "
            "A plain `pip install horovod` has no TensorFlow operations; build it "
            "with `gsnr-tf install-horovod` and check with "
            "`horovodrun --check-build`."
        ) from error
    return hvd


def built_with():
    """Names of what Horovod was built with: of "gloo", "mpi" and "nccl"."""
    hvd = imported()
    return [name for name in ("gloo", "mpi", "nccl") if getattr(hvd, f"{name}_built")()]


def load():
    """Returns `horovod.tensorflow`, initialised; raises as `imported` does."""
    hvd = imported()
    if not hvd.is_initialized():
        limits = _STALL_LIMITS if elastic() else _STALL_LIMITS | _PAUSE_LIMIT
        for name, limit in limits.items():
            os.environ.setdefault(name, limit)
        hvd.init()
    error_file.note_exit()
    return hvd


class HorovodCommunicator(Communicator):
    """The ranks of a Horovod job, one worker each.

    Each may own a shard of what is divided into rows, as even as it goes: shard i of k
    is the rows from n·i/k to n·(i+1)/k. Rank i owns shard i, unless `exchange_by_host`.

    Attributes:
        exchange_plan: The `ExchangePlan` of shards to their owner ranks.
        hosts: How many hosts they could go by; 1 where there is nothing to gain. All
            ranks must ask for this, and for `sharding_pays`, at the same point.
    """

    can_shard = True
    has_ranks = True

    def __init__(self):
        self._hvd = load()
        self.workers = self._hvd.size()
        self.rank = self._hvd.rank()
        self.exchange_plan = ExchangePlan.flat(self.rank, self.workers)

    def introduce(self, facts):
        """Tells all ranks about an optimizer, and is told about theirs.

        Args:
            facts: Picklable.

        Returns:
            `(number, by_rank)`: a number that this optimizer has on all ranks and no
            other has, and the list of what all ranks passed.
        """
        global _introduced
        _check_together()
        with tf.init_scope():
            told = self._hvd.allgather_object((_introduced, facts), name="gsnr.introduce")
        numbers, by_rank = zip(*told)
        _introduced = max(numbers) + 1
        watch_together(self.gather)
        return _introduced, list(by_rank)

    @property
    def sharding_pays(self):
        return self._ways[1]

    @property
    def hosts(self):
        by_host, _ = self._ways
        return by_host.hosts if by_host else 1

    @functools.cached_property
    def _ways(self):
        """The `ExchangePlan` by host or `None`, and whether sharding pays. Alike
        on all ranks, which must ask at the same point."""
        hvd = self._hvd
        alike = hvd.is_homogeneous()
        if alike and 1 in (hvd.cross_size(), hvd.local_size()):
            return None, True
        # In an elastic job the ranks that would have to agree may not be there yet.
        if elastic():
            return None, alike and hvd.local_size() <= _FEW
        places = self.gather((hvd.cross_rank(), hvd.local_rank()))
        route = ExchangePlan.by_host(hvd.rank(), places) if alike else None
        return route, bool(route) or max(local for _, local in places) < _FEW

    def exchange_by_host(self):
        """Makes `exchange_plan` the one by host; there must be several `hosts`."""
        self.exchange_plan, _ = self._ways

    def run(self, step, *values):
        graph = tf.compat.v1.get_default_graph()
        if self.workers > 1 and control_flow_util.GraphOrParentsInXlaContext(graph):
            raise RuntimeError(
                "Horovod's collectives cannot be compiled by XLA, but this train step "
                "was traced with jit_compile=True (Keras' jit_compile='auto' chooses "
                "it on GPUs). Pass jit_compile=False to `model.compile`, or add "
                "gsnr_tf.callbacks.BroadcastGlobalVariablesCallback() to the "
                "callbacks of `fit`, which switches it off."
            )
        _check_together()
        return step(*values)

    def all_reduce(self, tensor, name):
        add = functools.partial(self._hvd.allreduce, op=self._hvd.Sum, name=name, **_OUR_NAME)
        return self._issue(add, tensor)

    def bounds(self, rows):
        """Where each shard begins, and, last, the number of rows."""
        return [rows * part // self.workers for part in range(self.workers + 1)]

    def own_range(self, rows):
        """First row of this rank's shard, and the one after its last."""
        return tuple(self.bounds(rows)[self.exchange_plan.shard :][:2])

    def scatter_samples(self, vector, cuts, stage, name, weight=None):
        """Sends `[n]` in parts to the ranks of a stage of the exchange.

        Args:
            vector: Tensor of this rank.
            cuts: Where the part for each rank of the stage begins, and, last, where
                the last one ends; the first one is where the vector begins.
            stage: `Stage`.
            name: As for `all_reduce`.
            weight: Scalar tensor to send to each of them as well, or `None`. Its bits
                travel as numbers of the vector's dtype, whatever that is.

        Returns:
            `[ranks of the stage, own]`: what each of them had for this one. With a
            weight also `[ranks of the stage]`, theirs.
        """
        rider = [] if weight is None else [tf.reshape(tf.bitcast(weight, vector.dtype), [-1])]
        more = sum(tensor.shape[0] for tensor in rider)
        splits = [0] * self.workers
        for rank, start, stop in zip(stage.ranks, cuts, cuts[1:]):
            splits[rank] = stop - start + more
        if rider:
            sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
            parts = [part for own in tf.split(vector, sizes) for part in (own, *rider)]
            vector = tf.concat(parts, axis=0)

        received, _ = self._all_to_all(vector, splits, name)
        received = tf.reshape(received, [len(stage.ranks), splits[self.rank]])
        if weight is None:
            return received
        received, weights = received[:, :-more], received[:, -more:]
        weights = tf.bitcast(weights, weight.dtype) if more > 1 else weights[:, 0]
        return received, weights

    def all_gather_shards(self, shard, bounds, name):
        """Joins the shards of all ranks, in their order.

        Args:
            shard: `[own]`.
            bounds: Where each shard begins, and, last, where the last one ends.
            name: As for `all_reduce`.
        """

        joined = tf.ensure_shape(self.all_gather_rows(shard, name), [bounds[-1]])
        return self._in_order_of_shards(joined, bounds)

    def _in_order_of_shards(self, joined, bounds):
        owners = self.exchange_plan.owner_ranks
        if owners == sorted(owners):
            return joined
        sizes = np.diff(bounds)
        by_rank = tf.split(joined, [sizes[owners.index(rank)] for rank in sorted(owners)])
        return tf.concat([by_rank[rank] for rank in owners], axis=0)

    def scatter_rows(self, rows, sizes, stage, name):
        """Sends a table `[m, columns]` in parts to the ranks of a stage of the exchange.

        Args:
            rows: Tensor of this rank, what is for the first rank of the stage first.
            sizes: Integer tensor `[ranks of the stage]`, how many rows are for each.
            stage: `Stage`.
            name: As for `all_reduce`.

        Returns:
            `(rows, sizes)`: what came for this rank, in the order of the stage's ranks, and
            how many from each.
        """
        ranks = tf.constant(stage.ranks)[:, None]
        splits = tf.scatter_nd(ranks, tf.cast(sizes, tf.int32), [self.workers])
        received, by_rank = self._all_to_all(rows, splits, name)
        return received, tf.gather(by_rank, stage.ranks)

    def _all_to_all(self, tensor, splits, name):
        """What all ranks have sent to this one, joined, and how many rows of each."""
        sizes = []

        def exchange(tensor):
            wire = _on_the_wire(tensor)
            received, by_rank = self._hvd.alltoall(wire, splits=splits, name=name, **_OUR_NAME)
            sizes.append(by_rank)
            return tf.bitcast(received, tensor.dtype)

        return self._issue(exchange, tensor), sizes[0]

    def all_gather_rows(self, rows, name):
        def gather(rows):
            joined = self._hvd.allgather(_on_the_wire(rows), name=name, **_OUR_NAME)
            return tf.bitcast(joined, rows.dtype)

        return self._issue(gather, rows)

    def place(self):
        return self.rank

    def peers(self, served):
        """See `Peers`; all ranks must call it at one point. `None` until they can."""
        return Peers(self.gather, served) if together() else None

    def gather(self, value, name="gsnr.gather"):
        # Keras builds optimizers while it traces the train step.
        with tf.init_scope():
            return self._hvd.allgather_object(value, name=name)

    def broadcast(self, variables, root=0):
        if self.workers == 1 or not together():
            return True
        variables = [native(v) for v in variables]
        # Keras builds optimizers while it traces the train step. The weights are
        # shared before that step runs, unless its trace is what creates them.
        with tf.init_scope():
            ready = all(bool(v.is_initialized()) for v in variables)
            if ready:
                # A concrete function, since TensorFlow warns of every further
                # optimizer as if it were a retracing.
                receive = tf.function(lambda: self._receive(variables, root))
                receive.get_concrete_function()()
        if not ready:
            self._receive(variables, root)
        return ready

    def _receive(self, variables, root):
        for index, variable in enumerate(variables):
            value = tf.convert_to_tensor(variable)
            variable.assign(broadcast(value, root, f"gsnr.broadcast.{index}"))


def _check_together():
    if not together():
        raise RuntimeError(
            "This job is elastic, and its ranks have not met: each would train on "
            "its own. Train inside a function under @gsnr_tf.elastic_run."
        )


def broadcast(tensor, root, name):
    """The tensor of rank `root`, on all ranks, bit for bit.

    Args:
        tensor: Of any dtype that TensorFlow can cast or take apart, strings included;
            of one shape and dtype on all ranks.
        root: Int.
        name: As for `Communicator.all_reduce`.

    Raises:
        TypeError: The dtype cannot be sent.
    """
    if tensor.dtype == tf.string:
        return _broadcast_strings(tensor, root, name)
    sent = load().broadcast(_on_the_wire(tensor), root, name=name, **_OUR_NAME)
    if sent.dtype == tensor.dtype:
        return sent
    back = tf.cast if tensor.dtype in _CAST_FOR_THE_WIRE else tf.bitcast
    return back(sent, tensor.dtype)


def _broadcast_strings(strings, root, name):
    """Ranks have as many strings, but not as many bytes: their number goes first."""
    encoded = tf.io.decode_raw(tf.io.serialize_tensor(strings), tf.uint8)
    length = broadcast(tf.size(encoded), root, f"{name}.length")
    # The root has no use for the length, but takes part in sending it.
    with tf.control_dependencies([length]):
        is_root = load().rank() == root
        own = tf.identity(encoded) if is_root else tf.zeros([length], tf.uint8)
    encoded = broadcast(own, root, name)
    # TensorFlow has no operation from bytes to a string.
    byte = tf.constant([bytes([value]) for value in range(256)])
    serialized = tf.strings.reduce_join(tf.gather(byte, tf.cast(encoded, tf.int32)))
    return tf.ensure_shape(tf.io.parse_tensor(serialized, tf.string), strings.shape)


# What Horovod knows, and what else it can carry. Where bits are only moved it need not
# know what they mean; of types of one size these are those that NCCL knows as well.
_KNOWN_TO_HOROVOD = (
    *(tf.uint8, tf.int8, tf.uint16, tf.int16, tf.int32, tf.int64),
    *(tf.float16, tf.float32, tf.float64, tf.bool),
)
_OF_SIZE = {1: tf.uint8, 2: tf.float16, 4: tf.int32, 8: tf.int64, 16: tf.int64}
# `tf.bitcast` does not take these; the cast there and back is exact.
_CAST_FOR_THE_WIRE = {
    tf.as_dtype("float8_e4m3fn"): tf.float16,
    tf.as_dtype("float8_e5m2"): tf.float16,
    tf.as_dtype("int4"): tf.int8,
    tf.as_dtype("uint4"): tf.uint8,
}


def _on_the_wire(tensor):
    """The same values in a dtype that Horovod knows; it moves them and no more."""
    if tensor.dtype in _KNOWN_TO_HOROVOD:
        return tensor
    if tensor.dtype in _CAST_FOR_THE_WIRE:
        return tf.cast(tensor, _CAST_FOR_THE_WIRE[tensor.dtype])
    try:
        return tf.bitcast(tensor, _OF_SIZE.get(tensor.dtype.size))
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise TypeError(
            f"A tensor of dtype {tensor.dtype.name} cannot be sent to other ranks. Keep "
            "it as an integer, floating, complex, bool or string tensor."
        ) from error
