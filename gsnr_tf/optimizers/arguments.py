"""What the constructors of the family share: descriptions, and how arguments go on."""

FAMILY_ARGUMENTS = """gamma: Float in (0, 1]. Floor of the multiplier (Eq. 9). Defaults to 0.1.
        ceiling: Float, at least `gamma`. Upper bound of the multiplier. With
            `gamma=1, ceiling=1` the optimizer is its base optimizer. Defaults to 1 for the
            estimator "paper", else to 1/gamma.
        estimator: What the multiplier is made of, before it is divided by its mean over
            the variable: "paper", the GSNR r = mean²/variance, or "robust", the share
            of signal in the squared mean, mean²/(mean² + variance/(k−1)), which keeps
            its worth with few samples, or "james_stein": by row the positive-part
            James–Stein factor, by element as "robust". gsnr_tf/compare/EVIDENCE.md has what was
            measured of both. Defaults to "paper".
        granularity: "element", or "row": the table of a `keras.layers.Embedding` is
            judged by row, and rows have one multiplier each. Elements of all other
            variables are judged by themselves. Defaults to "element".
        l2: λ₂, coupled decay: λ₂θ is added to the gradient after clipping, as an L2 in the
            loss would (λ₂ is twice the factor of `keras.regularizers.L2`), but is no part
            of any sample. Float, or a dict of floats by regular expression, such as
            `{{"embeddings": 1e-3}}`, of which the first that is found in
            `variable.path` holds. Defaults to `None`.
        l2_form: Where it enters: "outside" of the multiplier, "inside" (multiplied as if
            it were gradient), or "gated": λ₂(1 − q)θ, with q the share of signal of the
            element or row. Defaults to "outside".
        weight_decay: Decoupled decay, as in AdamW. Float, `None`, or a dict as for `l2`.
        exclude_from_weight_decay: List of regular expressions, searched in
            `variable.path`: which variables are not decayed. An empty list excludes
            none. Holds for `l2` as well, where either is one number. Defaults to
            `None`: {default_exclusion}.
        sparse: What an update does to rows of an embedding table, or of any variable whose
            gradient is `tf.IndexedSlices`, that no worker touched. "lazy": they and
            their state rest, and the update costs the rows that were touched; decay,
            momentum and the trust ratio see no others. "dense": they take part in
            every update. "auto": tables of `bucket_bytes` or more are lazy, smaller
            ones, of which an update costs next to nothing, dense. Where XLA compiles
            the train step all are dense. Defaults to "auto".
        sample: What one sample of the gradient is: "micro_batch" (of
            `gradient_accumulation_steps`; k = workers × steps), "worker" (the mean of a
            worker's window; k = workers), "host" (the mean of a host's workers, where
            slices go by host; k = hosts) or "auto": the largest of these of which
            there are 8 or more, since larger samples spare a third of the bytes an
            update, else "micro_batch". Defaults to "auto".
        sharding: "slices" (under Horovod each rank takes the statistics, computes the
            update and keeps the state of one slice; see gsnr_tf/sharding), "none"
            (every worker updates all parameters) or "auto". "auto" is "slices" under
            Horovod, with two exceptions: "none" where a host has more than 3 ranks and
            either hosts have different numbers of ranks or the job is elastic; and
            a model of at most 131,072 parameters (parameters × ranks at most 1,048,576)
            is updated whole by each rank, which gets all samples by one all-gather.
            Defaults to "auto".
        bucket_bytes: Int. Gradients travel in buckets of about this size as backward
            yields them, larger ones alone. Defaults to 4 MiB.
        communication_dtype: "float32", "bfloat16" or "float16": how gradients travel
            with slices. Weights are never rounded. Defaults to "float32".
        communicator: Where the samples come from: "horovod" (one from each rank),
            "strategy" (one from each replica), "local" (only the micro-batches of
            this process) or "auto", which sees by itself. Defaults to "auto".
        learning_rate, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps,
            name: As for every Keras optimizer, except that clipping acts on the
            gradient of all workers, and that each accumulated micro-batch is a
            sample of its own. The moving average follows updates, not micro-batches.

        max_consecutive_skips: Int or `None`. Training ends with an error once so many
            updates in a row were skipped because the gradient was not finite. Defaults to
            10. Skips by which a loss scale is found do not count.

    Raises:
        ValueError: At construction for arguments out of range; at the first training
            step where only one sample an update would be left (one worker and no
            accumulation)."""

ADAM_ARGUMENTS = """beta_1, beta_2: Floats in [0, 1): decay of the moments of the gradient.
            Default to 0.9 and 0.999.
        beta_3: Float in [0, 1): decay of the moving average of r. Defaults to 0.9.
        epsilon: Float, added to the root of the corrected second moment, √v̂, as by
            keras.optimizers.Lamb. keras.optimizers.Adam adds its own before it corrects:
            there it weighs 1/√(1−β₂ᵗ) as much, 32 times at the first step.
        second_moment: "adapted" (s = p̂·g, the paper's form) or "raw" (s = g).
            Defaults to "adapted" for the estimator "paper", else to "raw"."""

ADAPTATION_ARGUMENT = """exclude_from_layer_adaptation: List of regular expressions, searched in
            `variable.path`: which variables have the trust ratio 1. An empty list
            excludes none. Defaults to `None`: variables with at most one dimension."""


def given(names):
    """The arguments of a constructor, of its `locals()`.

    Each class spells out all it takes, for whoever asks an editor or `inspect.signature`;
    `GSNROptimizer` sorts them.
    """
    return {name: value for name, value in names.items() if name not in ("self", "__class__")}


def second_moment_of(second_moment, estimator):
    """Where it is left out, the one that goes with the estimator."""
    if second_moment is not None:
        return second_moment
    return "adapted" if estimator == "paper" else "raw"
