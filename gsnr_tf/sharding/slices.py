"""The step at the price of a plain allreduce.

    gradients → alltoall → all samples of the own slice → statistics, rule, state
    on the slice → allgather of the weights

An allreduce moves 2·N·(k−1)/k numbers: it adds up slices, then sends the sums round.
Here the first half sends the samples themselves, so that the owner of a slice takes
their exact variance without a second reduction, and the second half sends weights.
Each rank computes the rule, and keeps its state, for 1/k of the parameters.

Each bucket is divided among all ranks and goes this way by itself, as soon as its
gradients are there. What concerns a whole variable crosses slices as one number: sums
for the mean of r and for clipping in one short allreduce, norms for trust ratios in
another.
"""

import functools

import numpy as np
import tensorflow as tf

from gsnr_tf.sharding.part import Part
from gsnr_tf.sharding.program import Program, clip_scales, join
from gsnr_tf.sharding.state import Share, SliceState


class Slices:
    """Reduction and update by owners of slices, for one optimizer.

    All ranks must make it at one point.

    Args:
        optimizer: The `GSNROptimizer`, built, whose workers have met.
        communicator: A `Communicator` that has owners.
        layout: The `Layout` of the variables.
        name: Prefix of the names of collectives.
    """

    def __init__(self, optimizer, communicator, layout, name):
        self._optimizer = optimizer
        self._comm = communicator
        self._layout = layout
        self._name = name
        parts = [
            Part(bucket, *communicator.own_rows(bucket.blocks))
            for bucket in layout.buckets
        ]
        self._state = {slot: SliceState(slot, layout, parts) for slot in optimizer.slots}
        self._share = Share(self._state)
        programs = {}
        self._slices = []
        for number, part in enumerate(parts):
            program = Program(optimizer, part)
            program = programs.setdefault(program.kind, program)
            slots = {slot: state.parts[number] for slot, state in self._state.items()}
            one = _Slice(
                optimizer, communicator, part, program, slots, f"{name}.{number}",
                carries=number == layout.carrier,
            )  # fmt: skip
            self._slices.append(one)
        self._peers = communicator.peers(self._share)
        self.watch = None

    # ---- the slots, for who saves and loads ------------------------------------------

    def changes(self):
        """See `Share.changes`."""
        return self._share.changes()

    def count_changes_from(self, number):
        """Makes `changes()` the same on ranks that have the same state again."""
        self._share.count.assign(number)

    @property
    def count(self):
        """`changes()` as a tensor, within a step."""
        return tf.convert_to_tensor(self._share.count)

    def read(self, slot, index):
        """The slot of a variable, whole, as it is after this rank's last change."""
        by_rank = self._peers.collect(f"{slot}/{index}")
        flat = np.frombuffer(
            b"".join(by_rank[rank] for rank in self._comm.route.owners),
            self._layout.dtype.as_numpy_dtype,
        )
        return flat.reshape(self._layout.shapes[index])

    def write(self, slot, index, value):
        """Takes the own part of the slot of a variable."""
        self._state[slot].write(index, value)
        self._share.count.assign_add(1)

    # ---- within a step ---------------------------------------------------------------

    def end_update(self):
        """To be called in a step after all else."""
        self._share.count.assign_add(1)
        if self.watch:
            self.watch.mark(2, [])

    def reduce(self, moments, weighted, riders):
        """Whether all is finite; mean and r of the slices, and sums of each variable; the
        sum of all ranks' riders.

        Args:
            moments: List of `Moments`, one for each bucket.
            weighted: Not asked: weights always travel.
            riders: Tensor `[m]`, on all ranks.
        """
        if self.watch:
            self.watch.mark(0, moments)
        carrier = self._layout.carrier
        found, weights = [None] * len(moments), None
        for number in [carrier, *(n for n in range(len(moments)) if n != carrier)]:
            found[number], weights = self._slices[number].statistics(
                moments[number], weights, self._optimizer
            )
        sums, riders = self._shared([sums for _, _, sums in found], "sums", riders)
        finite = tf.math.is_finite(sum(tf.reduce_sum(s[:, 2]) for s in sums))
        return finite, [(mean, r, s) for (mean, r, _), s in zip(found, sums)], riders

    def update(self, active, reduced, rate, t):
        """Updates all variables; returns Σ mean² and Σ variance."""
        sums = [s for _, _, s in reduced]
        all_scales = clip_scales(self._optimizer, [s[:, 2] for s in sums])
        if self.watch:
            self.watch.mark(1, reduced)
            see = functools.partial(self._seen, reduced, all_scales, rate, t)
            seen = self.watch.when_due(see)
            self.watch.record(lambda: self._tables(reduced, seen, rate, t))
        moving = []
        for one, statistics, scales in zip(self._slices, reduced, all_scales):
            one.activate(active)
            moving.append((one, one.direction(*statistics, scales, rate, t)))
        adapting = [(one, u, norms) for one, (u, norms) in moving if norms is not None]
        if adapting:
            all_norms, _ = self._shared([norms for *_, norms in adapting], "norms")
            for (one, u, _), norms in zip(adapting, all_norms):
                one.receive(one.descend(u, norms, rate, t))
        for one, (theta, norms) in moving:
            if norms is None:
                one.receive(theta)
        return tf.unstack(sum(tf.reduce_sum(s[:, 2:], axis=0) for s in sums))

    def _seen(self, reduced, all_scales, rate, t):
        """What this rank has to show of each bucket: see `Watch.when_due`."""
        return [
            one.seen(*statistics, scales, rate, t)
            for one, statistics, scales in zip(self._slices, reduced, all_scales)
        ]

    def _tables(self, reduced, seen, rate, t):
        """What there is to see of each bucket: see `Watch.record`."""
        return [
            one.table(sums, all_seen, rate, t)
            for one, (*_, sums), all_seen in zip(
                self._slices, reduced, self._shared(seen, "watch")[0]
            )
        ]

    def _shared(self, tables, name, riders=None):
        """Sums over all ranks of tables `[variables, columns]`, by one collective.

        Returns the list of them, and the sum of riders `[m]`.
        """
        parts = [tf.reshape(table, [-1]) for table in tables]
        sizes = [part.shape[0] for part in parts]
        if riders is not None:
            parts, sizes = [*parts, riders], [*sizes, riders.shape[0]]
        total = self._comm.all_reduce(tf.concat(parts, axis=0), f"{self._name}.{name}")
        totals = tf.split(total, sizes)
        riders = None if riders is None else totals.pop()
        return [tf.reshape(t, table.shape) for t, table in zip(totals, tables)], riders

    def state_bytes(self):
        """See `GSNROptimizer.state_bytes`."""
        elements = sum(one.part.size for one in self._slices)
        return len(self._state) * elements * self._layout.dtype.size

    def report(self):
        """See `GSNROptimizer.sharding_report`."""
        optimizer = self._optimizer
        hosts = self._comm.route.hosts
        by_host = f" by way of {hosts} hosts" if hosts > 1 else ""
        lines = [
            f"{self._comm.workers} ranks{by_host}, {len(self._slices)} buckets, "
            f"k={int(optimizer.samples)} samples an update"
        ]
        spreads = [optimizer._keeps_spread, optimizer.compares_ranks]
        for part, rank in sorted(enumerate(self._comm.route.owners), key=lambda x: x[1]):
            own = sum(one.owned(part) for one in self._slices)
            state = own * len(self._state) * self._layout.dtype.size
            sent = sum(one.sent(part, spreads) for one in self._slices)
            lines.append(
                f"rank {rank}: owns {own:,} elements, {state:,} bytes of state, "
                f"sends {sent:,} bytes an update"
            )
        return "\n".join(lines)


class _Slice:
    """This rank's slice of one bucket, on its way through a step."""

    def __init__(self, optimizer, communicator, part, program, slots, name, carries):
        self._comm = communicator
        self._carries = carries
        self._program = program
        self._slots = slots
        self._name = name
        self._bounds = [part.bucket.at(b) for b in communicator.bounds(part.bucket.blocks)]
        self._cuts = communicator.route.cuts(self._bounds, communicator.route.part)
        self._wire_dtype = part.bucket.dtype
        if optimizer.communication_dtype != "float32":
            self._wire_dtype = tf.as_dtype(optimizer.communication_dtype)
        self._variables = part.bucket.pick(optimizer._trainable_variables)
        self.part = part

    def owned(self, part):
        return self._bounds[part + 1] - self._bounds[part]

    def sent(self, part, spreads):
        """Bytes from its owner: samples of the others' parts, its weights to all others.

        Args:
            part: Number of the part.
            spreads: For each level of the route whether spreads travel as well.
        """
        bucket, own, sent = self.part.bucket, self.owned(part), 0
        cuts = self._comm.route.cuts(self._bounds, part)
        held = [whole[-1] - whole[0] for whole in cuts]
        for before, after, spread in zip(held, [*held[1:], own], spreads):
            item = self._wire_dtype.size + (bucket.dtype.size if spread else 0)
            sent += (before - after) * item
        return sent + (len(self._bounds) - 2) * own * bucket.weights_dtype.size

    def statistics(self, moments, weights, optimizer):
        """Sends the samples to their owners: mean, r and the sums of the own part.

        Args:
            moments: `Moments` of this rank.
            weights: For each level of the route those of its ranks; `None` for the
                bucket with which they travel.
            optimizer: The `GSNROptimizer`.

        Returns:
            `(statistics, weights)`, weights as given, or as they came.
        """
        mean, spread = tf.cast(moments.mean, self._wire_dtype), moments.spread
        weight, found = moments.weight, []
        levels = self._comm.route.levels
        for number, (level, cuts) in enumerate(zip(levels, self._cuts)):
            name = f"{self._name}.{number}"
            if self._carries:
                means, theirs = self._comm.to_owners(mean, cuts, level, f"{name}.mean", weight)
                weight = tf.reduce_sum(theirs)
            else:
                means = self._comm.to_owners(mean, cuts, level, f"{name}.mean")
                theirs = weights[number]
            found.append(theirs)
            if spread is not None:
                # Squares of small gradients are too small for float16.
                spread = self._comm.to_owners(spread, cuts, level, f"{name}.spread")
            if level is not levels[-1]:
                mean, spread = join(
                    means, spread, theirs, self.part.bucket.dtype, optimizer.compares_ranks
                )
        return self._program.statistics(means, spread, theirs, optimizer.samples), found

    def activate(self, active):
        """Notes which variables have a gradient, as booleans or, where only other ranks
        know, tensors."""
        active = self.part.bucket.pick(active)
        certain = all(known is True for known in active)
        self._active = None if certain else tf.stack([tf.cast(a, tf.bool) for a in active])

    def direction(self, mean, r, sums, scales, rate, t):
        """u and norms of the own part; where nothing adapts, new weights and `None`."""
        theta = [tf.convert_to_tensor(variable) for variable in self._variables]
        return self._program.direction(
            theta, mean, r, self._slots, sums, scales, rate, t, self._active
        )

    def seen(self, mean, r, sums, scales, rate, t):
        """`watch.sums_and_counts` of the own part."""
        theta = [tf.convert_to_tensor(variable) for variable in self._variables]
        return self._program.seen(theta, mean, r, self._slots, sums, scales, rate, t)

    def table(self, sums, seen, rate, t):
        return self._program.table(sums, seen, rate, t)

    def descend(self, u, norms, rate, t):
        """The new weights of the own part."""
        theta = [tf.convert_to_tensor(variable) for variable in self._variables]
        return self._program.descend(
            theta, u, norms, self._slots, rate, t, self._active
        )

    def receive(self, theta):
        """Joins the parts of all ranks and gives the variables their new weights."""
        bucket = self.part.bucket
        whole = self._comm.from_owners(theta, self._bounds, f"{self._name}.weights")
        for variable, value in zip(self._variables, bucket.unpack(whole)):
            variable.assign(tf.cast(value, variable.dtype))
