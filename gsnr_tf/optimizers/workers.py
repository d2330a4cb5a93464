"""The workers of an optimizer: how they meet, and what they make sure of then."""

import keras
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.optimizers import consensus
from gsnr_tf.optimizers.eagerly import outside_of_traces
from gsnr_tf.optimizers.header import UpdateHeader

_order = consensus.Order()


class ConnectsWorkers:
    """The part of `DistributedStep` that knows who trains with whom.

    Ranks meet at the first training step, and not before: Keras builds optimizers in any
    process at any time. Replicas and a single process are known when it is built.
    """

    communicator = "auto"
    # The workers, once they have met; see `connect`.
    _comm = None
    _header = None
    _connected = False
    # Whether all have the weights of one: not yet where the first trace makes them.
    _shared = True
    # Prefix of the names of collectives.
    _collective = "gsnr"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._number = _order.number()

    def _has_ranks(self):
        """Whether the workers are ranks, of which nothing is known before they meet."""
        return comm.expects_ranks(self.communicator, self._distribution_strategy)

    def _choose_workers(self):
        self._comm = comm.choose(self.communicator, self._distribution_strategy)

    @tf.autograph.experimental.do_not_convert
    def connect(self, root=0):
        """Meets the other workers: the first training step does this by itself.

        Ranks compare what they must have alike, and all get the weights of rank `root`,
        and its state if it has loaded any. All ranks must call it at one point. Further
        calls do nothing, until `disconnect`.

        Args:
            root: Int, the rank.

        Raises:
            RanksDiffer: On all ranks: arguments, variables or their order differ.
            ValueError: The workers there are cannot do with this optimizer, or it is
                not built.
        """
        if self._connected:
            if not self._shared:
                self._shared = self._comm.broadcast(self._trainable_variables, root)
            return
        if not self.built:
            raise ValueError(f"{self.name} is not built: call `build` before `connect`.")
        if self._has_ranks():
            # Asked here: Keras has the policy of a thread.
            policy = keras.config.dtype_policy().name
            outside_of_traces(self._connect_ranks, policy, root)
            self._shared = self._comm.broadcast(self._trainable_variables, root)
        else:
            self.check_workers()
            self._settle_tables()
        self._connected = True

    def _connect_ranks(self, policy, root):
        self._choose_workers()
        if self._comm.workers > 1:
            facts = {
                "dtype policy": policy,
                "a window that varies": self._varies,
                "loss scaling": self._scaled_by,
                "place among the optimizers in the order they were made": _order.place(
                    self._number
                ),
            }
            facts = consensus.facts(self, self._trainable_variables, facts)
            number, by_rank = self._comm.introduce(facts)
            consensus.check(by_rank)
            # Names of collectives, which Keras' own, counted in each process, cannot be.
            self._collective = f"gsnr.{number}"
            self._header = UpdateHeader(self._comm, self._trainable_variables, self._layout.dtype)
        self.check_workers()
        self._settle_tables()
        self._place_state(root)

    def disconnect(self):
        """Parts from the workers, in a job where they come and go. State stays, but for
        what other ranks hold of it."""
        if self._has_ranks():
            self._comm = self._header = None
        self._connected = False

    @property
    def comm(self):
        """The `Communicator` of workers that have met, else `None`."""
        return self._comm

    @property
    def header(self):
        """The `UpdateHeader` of ranks that have met, else `None`."""
        return self._header

    def _place_state(self, root):
        """Gives each rank what it keeps of the state."""

    def _settle_tables(self):
        """Decides, alike on all workers, of which variables only touched rows are updated."""

    def check_workers(self):
        """Raises where the rule cannot do with the workers there are."""

    def share_state(self, root=0):
        """Gives all ranks the state of one: of this class, all state is in variables."""
