"""Random seeds of layers that differ between ranks."""

import numpy as np

from gsnr_tf import comm

# Coprime to the number of seeds: multiples of it by different ranks never meet.
_STEP = 0x9E3779B1
_SEEDS = 2**31


def is_seed(variable):
    """Whether a variable is the state of a `keras.random.SeedGenerator`."""
    return "seed_generator_state" in variable.path


def separate_seeds(model, communicator):
    """Gives each rank seeds of its own where another has the same. All ranks call it.

    With `keras.utils.set_random_seed(0)` on all ranks, dropout would mask the same units
    on each of them. Rank 0 keeps its seeds, so that it draws what a single process does;
    the others' follow from the seed that they have and their rank. Seeds that differ
    stay, and so do counters: to call it again changes nothing, and a job that goes on
    from what rank 0 has saved gets the seeds that it had.
    """
    if communicator.workers == 1:
        return
    states = [variable for variable in model.variables if is_seed(variable)]
    own = [int(state.numpy()[0]) for state in states]
    for state, by_rank in zip(states, zip(*communicator.gather(own, "gsnr.seeds"))):
        _, counter = state.numpy()
        state.assign(np.array([_separated(by_rank)[comm.rank()], counter]))


def _separated(seeds):
    """The seeds of the ranks, each rank's unlike those of the ranks before it."""
    taken = []
    for rank, seed in enumerate(seeds):
        while seed in taken:
            seed = (seed + rank * _STEP) % _SEEDS
        taken.append(seed)
    return taken
