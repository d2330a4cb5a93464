"""The ranks of a Horovod job."""

import os

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from gsnr_tf.comm.base import Communicator, native
from gsnr_tf.comm.peers import Peers

# A rank that waits for another longer than this is told so, then stopped, unless
# the user chose otherwise: a job that hangs costs more than a job that fails.
_STALL_LIMITS = {
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1800",
}


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
            "with `bash horovod_scripts/install_horovod.sh` and check with "
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
        for name, limit in _STALL_LIMITS.items():
            os.environ.setdefault(name, limit)
        hvd.init()
    return hvd


class HorovodCommunicator(Communicator):
    """The ranks of a Horovod job, one worker each.

    Each may own a part of what is divided into rows, as even as it goes: rank i of k
    owns the rows from n·i/k to n·(i+1)/k.
    """

    has_owners = True

    def __init__(self):
        self._hvd = load()
        self.workers = self._hvd.size()
        # r ranks of a host send (r+1)/2 times the bytes of an allreduce through its
        # link with owners, and twice those without. Within one host nothing is shared.
        several_hosts = self._hvd.cross_size() > 1
        self.owners_pay = not several_hosts or self._hvd.local_size() <= 3

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
        if not together():
            raise RuntimeError(
                "This job is elastic, and its ranks have not met: each would train on "
                "its own. Train inside a function under @gsnr_tf.elastic_run."
            )
        return step(*values)

    def all_reduce(self, tensor, name):
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name=name)

    def bounds(self, rows):
        """Where the part of each rank begins, and, last, the number of rows."""
        return [rows * rank // self.workers for rank in range(self.workers + 1)]

    def own_rows(self, rows):
        """First row of this rank's part, and the one after its last."""
        bounds = self.bounds(rows)
        return bounds[self._hvd.rank()], bounds[self._hvd.rank() + 1]

    def to_owners(self, vector, bounds, name):
        """Sends `[n]` in parts to their owners.

        Args:
            vector: Tensor of this rank.
            bounds: Where the part of each rank begins, and, last, n.
            name: As for `all_reduce`.

        Returns:
            `[workers, own]`: what each rank had for this one.
        """
        splits = [stop - start for start, stop in zip(bounds, bounds[1:])]
        wire = _on_the_wire(vector)
        received, _ = self._hvd.alltoall(wire, splits=splits, name=name)
        received = tf.bitcast(received, vector.dtype)
        return tf.reshape(received, [self.workers, splits[self._hvd.rank()]])

    def from_owners(self, part, name):
        """Joins the parts `[own, ...]` of all ranks, in their order."""
        joined = self._hvd.allgather(_on_the_wire(part), name=name)
        return tf.bitcast(joined, part.dtype)

    def peers(self, share):
        """See `Peers`; all ranks must call it at one point. `None` until they can."""
        return Peers(self.gather, share) if together() else None

    def gather(self, value):
        # Keras builds optimizers while it traces the train step.
        with tf.init_scope():
            return self._hvd.allgather_object(value, name="gsnr.gather")

    def broadcast(self, variables, root=0):
        if self.workers == 1 or not together():
            return
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

    def _receive(self, variables, root):
        for index, variable in enumerate(variables):
            value = tf.convert_to_tensor(variable)
            wire = tf.float32 if value.dtype == tf.bfloat16 else value.dtype
            sent = self._hvd.broadcast(
                tf.cast(value, wire), root, name=f"gsnr.broadcast.{index}"
            )
            variable.assign(tf.cast(sent, value.dtype))


def _on_the_wire(tensor):
    """Horovod does not know bfloat16, but where it only moves bits it need not."""
    return tf.bitcast(tensor, tf.uint16) if tensor.dtype == tf.bfloat16 else tensor
