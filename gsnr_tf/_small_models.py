"""Which models are small. Apart from optimizers, which need TensorFlow."""

# Up to so many numbers to train, and so many of all workers together, one collective takes
# less time than three: there is little to send and to compute. Measured: see "Small models"
# in benchmarks/RESULTS.md.
SMALL, SMALL_TOGETHER = 2**17, 2**20


def is_small(elements, workers):
    """Whether each of so many workers had better get all samples of so many numbers."""
    return elements <= SMALL and workers * elements <= SMALL_TOGETHER
