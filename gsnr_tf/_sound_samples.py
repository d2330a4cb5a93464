"""How many samples an estimate needs. Apart from stats, which needs TensorFlow."""

# From so many samples on each of `stats.ESTIMATORS` says something. Of fewer, the paper's
# r has no finite expectation to speak of, even where there is nothing but noise.
SOUND_SAMPLES = {"paper": 8, "robust": 2, "james_stein": 2}
