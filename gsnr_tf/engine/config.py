"""The configuration of a job: what its keys mean, and which values they take.

The descriptions here are the documentation: docs/ is generated from them.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from gsnr_tf.engine import arguments, batch, signatures


def _whole(value):
    """Numbers such as 5e8, which JSON reads as floats, where an integer is meant."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
Natural = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Positive = Annotated[float, Field(gt=0)]


def _no_boolean(value):
    """Keeps `true` from passing for 1."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number. Received: {value!r}")
    return value


def _to_be_made(info):
    """Whether optimizer and schedule are to be made, which takes TensorFlow."""
    return (info.context or {}).get("make", True)


def _raise(problems):
    """Raises one ValueError, with a line for each problem."""
    if problems:
        raise ValueError("\n".join(problems))


class Section(pydantic.BaseModel):
    """Base of all sections: nothing unknown, nothing converted, nothing changed."""

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )


class Optimizer(Section):
    """Which rule updates the weights.

    `type` is GSNRSGD, GSNRAdam, GSNRNadam, GSNRLars or GSNRLamb; a name of DeepSpeed's, which
    gives DeepSpeed's formulas and defaults; or "keras." and the name of any optimizer of
    `keras.optimizers`, for Keras' own. Upper and lower case do not matter. `params` are the
    arguments of its constructor; DeepSpeed's `lr`, `betas` and `eps` are understood by all.
    Clipping and accumulation have keys of their own. Without this section
    `initialize(optimizer=…)` gives the optimizer, or it is DeepSpeed's AdamW.
    """

    type: str = Field(
        description="Name of the optimizer.",
        examples=["GSNRLamb"],
        # Others that the installed Keras has are let through.
        json_schema_extra={"anyOf": [{"enum": signatures.names()}, {"type": "string"}]},
    )
    params: dict[str, Any] = Field(
        default={},
        description="Arguments of its constructor.",
        examples=[{"lr": 0.01, "weight_decay": 0.01}],
    )

    @pydantic.model_validator(mode="after")
    def _known(self, info):
        _raise(arguments.optimizer_problems(self.type, self.params, _to_be_made(info)))
        return self


class Scheduler(Section):
    """How the learning rate changes from update to update.

    Updates are counted, not micro-batches; with `gsnr.batch_ramp` those of the first
    batch, however large they have become. Each schedule gives every update the rate
    that DeepSpeed's gives it. Without this section the rate stays at the optimizer's.
    """

    type: Literal[tuple(signatures.schedules())] = Field(
        description="Name of the schedule.", examples=["WarmupCosineLR"]
    )
    params: dict[str, Any] = Field(
        default={},
        description=(
            "Its parameters, those of DeepSpeed. `WarmupCosineLR` takes its peak "
            "from the optimizer's `lr`."
        ),
        examples=[{"total_num_steps": 10000, "warmup_num_steps": 500}],
    )

    @pydantic.model_validator(mode="after")
    def _known(self, info):
        _raise(arguments.scheduler_problems(self.type, self.params, _to_be_made(info)))
        return self


class FP16(Section):
    """Computation in float16, with weights in float32 and the loss scaled.

    The layers of the model that have the policy float32 get `mixed_float16`, in place;
    the output layers of a Sequential or functional model stay float32, so that softmax
    and loss keep their digits. Keras' global policy is left alone. An update whose
    reduced gradient is not finite is skipped by all ranks together.
    """

    enabled: bool = Field(default=False, description="Whether to compute in float16.")
    loss_scale: float = Field(
        default=0.0,
        ge=0,
        description=("Factor of the loss. 0 is a dynamic scale, which the other keys shape."),
    )
    initial_scale_power: Natural = Field(
        default=16, le=127, description="The dynamic scale begins at 2 to this power."
    )
    loss_scale_window: Count = Field(
        default=1000,
        description=("After so many updates in a row without an overflow the scale doubles."),
    )
    hysteresis: Count = Field(
        default=2,
        description=(
            "The scale is halved by the overflow of this number, counted since it "
            "last doubled; those before it only skip their update."
        ),
    )
    min_loss_scale: Positive = Field(
        default=1.0, description="The dynamic scale does not fall below this."
    )

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.min_loss_scale > 2.0**self.initial_scale_power:
            raise ValueError(
                f"min_loss_scale={self.min_loss_scale:g} is above the initial scale, 2"
                f" to the power initial_scale_power={self.initial_scale_power}."
            )
        return self


class BF16(Section):
    """Computation in bfloat16, with weights in float32. The loss needs no scale.

    Layers are chosen as for `fp16`.
    """

    enabled: bool = Field(default=False, description="Whether to compute in bfloat16.")


class ZeroOptimization(Section):
    """Who keeps which part of the optimizer.

    Stages 1 and 2 are one thing here: each rank receives the gradients of its own slice
    of the parameters only (stage 2), keeps the optimizer state of that slice only
    (stage 1) and sends round the weights. The bytes are those of a plain allreduce. A
    single rank has nothing to divide, and any stage means 0. Stage 3 runs as stage 2, with
    the parameters whole on each rank. Only the GSNR family is divided: with `gsnr.gamma` 1
    and `gsnr.ceiling` 1 it is the plain optimizers. Other optimizers keep all their state on
    each rank, which is told.
    """

    stage: Annotated[Literal[0, 1, 2, 3] | None, BeforeValidator(_no_boolean)] = Field(
        default=None,
        description=(
            "0: every rank has all state. 1 or 2: a slice of it. 3 is 2. Not given: what "
            "the optimizer does by itself."
        ),
        examples=[2],
    )
    reduce_bucket_size: Count | None = Field(
        default=None,
        description=(
            "Elements that travel together, so that communication can begin before "
            "the last gradient is there. Not given: the optimizer's own choice."
        ),
        examples=[50_000_000],
    )


class Sink(Section):
    """Common to `tensorboard` and `csv_monitor`."""

    enabled: bool = Field(default=False, description="Whether to write.")
    output_path: str = Field(default="runs", description="Folder.", examples=["runs/movielens"])
    job_name: str = Field(
        default="train", description="Name of the job, a folder inside `output_path`."
    )


class TensorBoard(Sink):
    """Loss, learning rate and loss scale as TensorBoard events, from rank 0.

    The horizontal axis is the number of examples, as in DeepSpeed.
    """


class CSVMonitor(Sink):
    """Loss, learning rate and loss scale as CSV files, one for each, from rank 0."""


class FlopsProfiler(Section):
    """Counts the operations of one update, and measures its time and memory."""

    enabled: bool = Field(default=False, description="Whether to profile.")
    profile_step: Count = Field(
        default=1,
        description=(
            "Number of the update that is measured, from 1. The first ones hold "
            "the tracing of the graph: 5 measures one that does not."
        ),
        examples=[5],
    )
    output_file: str | None = Field(
        default=None,
        description="File for the profile. Not given: standard output of rank 0.",
        examples=["profile.txt"],
    )


class Autotuning(Section):
    """The search for the fastest way to compute the same updates.

    `gsnr-tf tune CONFIG --np N script.py …` runs the script again and again, for a few
    updates each, in processes of its own: with `train_batch_size` as it is, other
    micro-batches, with the accumulation that follows, and then other bucket sizes. It
    tells what it tried and why a trial failed, and writes the configuration that it
    found. For the GSNR family an update keeps 8 samples where it can, 2 with the robust
    estimator.
    """

    enabled: bool = Field(default=False, description="Whether `gsnr-tf tune` may search.")
    results_dir: str = Field(
        default="autotuning_results",
        description="Folder for the trials and the configuration that was found.",
    )
    start_profile_step: Count = Field(
        default=3, description="After this update the clock of a trial begins."
    )
    end_profile_step: Count = Field(default=8, description="After this update a trial ends.")
    num_tuning_micro_batch_sizes: Count = Field(
        default=6,
        description="Micro-batches that are tried at most, from small to large.",
    )

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.end_profile_step <= self.start_profile_step:
            raise ValueError(
                f"end_profile_step={self.end_profile_step} must be greater than "
                f"start_profile_step={self.start_profile_step}."
            )
        return self


class BatchRamp(Section):
    """A batch that grows with the noise of the gradient, as `BatchSizeRamp` does it.

    The first updates have `train_batch_size` examples. The batch is doubled, by
    doubling the micro-batches that are accumulated, while twice the batch is at most
    `share` times the noise scale and at most `max_train_batch_size`; it never shrinks.
    Micro-batches keep their size. The learning rate is the optimizer's `lr` at first
    and grows with the batch, as `scaling` says. With a `scheduler` it is the
    scheduler's, multiplied by what the ramp has made of it; the scheduler's steps are
    then updates of the first batch: one of twice the examples counts as two.

    `train_batch_size()` and `gradient_accumulation_steps()` of the engine say what the
    next update takes, and the lines of `steps_per_print` what the last one took. Under
    `fit` an epoch has the examples that it would have without the ramp, and its last
    update takes what is left of them, `train_batch_size` or a multiple of it.
    `train_batch` always takes full batches, across epochs. A checkpoint keeps the batch
    that was reached, for any number of ranks.
    """

    max_train_batch_size: Count = Field(
        description="Examples of an update beyond which the batch does not grow.",
        examples=[65536],
    )
    scaling: Literal["linear", "sqrt", "adascale"] = Field(
        default="sqrt",
        description=(
            "What the learning rate is multiplied by at each doubling: 2, √2 (usual "
            "for Adam and LAMB), or the gain of AdaScale (for SGD)."
        ),
    )
    share: Positive = Field(
        default=1.0, description="Which part of the noise scale the batch may reach."
    )
    every: Count | None = Field(
        default=None,
        description=(
            "The ramp looks at the noise every so many updates, and at least 5 times before "
            "each doubling. Not given: `gsnr.monitor_interval`, else 10."
        ),
    )


class GSNR(Section):
    """What DeepSpeed does not have: multiplier, record, checks, a growing batch."""

    gamma: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Floor of the multiplier. Not given: the optimizer's 0.1.",
        examples=[0.1],
    )
    ceiling: Positive | None = Field(
        default=None,
        description=(
            "Ceiling of the multiplier. Not given: the optimizer's, 1, or with "
            "other estimators 1/gamma. Both at 1 switch the multiplier off."
        ),
        examples=[10.0],
    )
    estimator: Literal["paper", "robust", "james_stein"] | None = Field(
        default=None,
        description=(
            "What the multiplier is made of: the GSNR (`paper`) or the share of signal "
            "in the squared mean gradient (`robust`), which keeps its worth with few "
            "samples, or by row the James–Stein factor (`james_stein`). Not given: the "
            "optimizer's `paper`."
        ),
        examples=["robust"],
    )
    monitor_interval: Count | None = Field(
        default=None,
        description=(
            "Under `fit`, GSNRMonitor records every so many updates; `gsnr-tf report` "
            "makes a page of it. Not given: nothing is recorded."
        ),
        examples=[10],
    )
    monitor_path: str = Field(
        default="runs/monitor", description="Folder of that record, of this job alone."
    )
    shuffle_seed: Natural = Field(
        default=0,
        description=(
            "Seed of the order in which arrays are gone through, a new one each epoch,"
            " the same on any number of ranks. A tf.data.Dataset keeps its own order."
        ),
    )
    consistency_check: Literal["stop", "broadcast", "off"] = Field(
        default="stop",
        description=(
            "At the end of each epoch of `fit`, and before a checkpoint is written, ranks"
            " compare checksums of weights, optimizer variables and averaged statistics."
            " Where they differ, `stop` ends the job and names variables and ranks;"
            " `broadcast` gives all ranks what most of them have, and goes on."
        ),
    )
    batch_ramp: BatchRamp | None = None


class Config(Section):
    """Batch size, clipping, precision of what travels, and what is printed.

    `train_batch_size = train_micro_batch_size_per_gpu × gradient_accumulation_steps ×
    ranks`, exactly. Any two give the third. Give the first two, and the same file runs
    on 1, 2 and 4 processes with the same samples in every update.

    A file of DeepSpeed's runs as it is: its other keys are accepted where they have no
    effect on results, and told at the start; see [DeepSpeed's keys](deepspeed.md). "auto"
    stands for what Hugging Face's Trainer fills in.
    """

    train_batch_size: Count | None = Field(
        default=None,
        description="Examples of an update, over all ranks.",
        examples=[4096],
    )
    train_micro_batch_size_per_gpu: Count | None = Field(
        default=None,
        description=(
            "Examples that one rank computes at once. Each micro-batch is a sample of the gradient."
        ),
        examples=[512],
    )
    gradient_accumulation_steps: Count | None = Field(
        default=None,
        description=(
            "Micro-batches of a rank to an update. 1 where only one of the other two is given."
        ),
        examples=[2],
    )
    optimizer: Optimizer = Optimizer.model_construct(type="AdamW", params={})
    scheduler: Scheduler | None = None
    gradient_clipping: float = Field(
        default=0.0,
        ge=0,
        description=(
            "Largest 2-norm of the gradient, over all variables and all ranks. 0 does not clip."
            " Not given: 1 with an optimizer of DeepSpeed's, as there, else 0."
        ),
        examples=[1.0],
    )
    fp16: FP16 = FP16()
    bf16: BF16 = BF16()
    zero_optimization: ZeroOptimization = ZeroOptimization()
    communication_data_type: Literal["fp32", "fp16", "bfp16"] | None = Field(
        default=None,
        description="Type in which gradients travel. Not given: float32.",
        examples=["bfp16"],
    )
    steps_per_print: Count | None = Field(
        default=10,
        description="Rank 0 prints a line after every so many updates. null: never.",
    )
    wall_clock_breakdown: bool = Field(
        default=False,
        description=(
            "Whether each of those lines also tells the time of forward and "
            "backward pass, communication and update, for every rank."
        ),
    )
    tensorboard: TensorBoard = TensorBoard()
    csv_monitor: CSVMonitor = CSVMonitor()
    flops_profiler: FlopsProfiler = FlopsProfiler()
    autotuning: Autotuning = Autotuning()
    gsnr: GSNR = GSNR()

    _decisions: tuple = pydantic.PrivateAttr(default=())
    _given_rule: signatures.Signature | None = pydantic.PrivateAttr(default=None)

    @pydantic.model_validator(mode="after")
    def _consistent(self, info):
        context = info.context or {}
        self._given_rule = context.get("rule")
        if not context.get("together", True):
            return self
        problems = arguments.contradictions(self)
        if self.fp16.enabled and self.bf16.enabled:
            problems.insert(0, "fp16 and bf16 exclude each other: enable one of them.")
        _raise(problems)
        return self

    @property
    def decisions(self):
        """Tuple of `deepspeed.table.Decision`: what was made of keys that are not here."""
        return self._decisions

    @property
    def rule(self):
        """The `Signature` of the optimizer: that of `initialize(optimizer=…)`, else the file's."""
        return self._given_rule or signatures.optimizer(self.optimizer.type)

    def batch(self, ranks):
        """The `Batch` of the job on a number of ranks.

        Raises:
            ConfigError: The sizes do not fit together.
        """
        found = batch.resolve(
            self.train_batch_size,
            self.train_micro_batch_size_per_gpu,
            self.gradient_accumulation_steps,
            ranks,
        )
        if self.gsnr.batch_ramp:
            batch.check_room(found, self.gsnr.batch_ramp.max_train_batch_size)
        return found
