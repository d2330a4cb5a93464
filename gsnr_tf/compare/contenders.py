"""Who is compared: the base optimizer, the control, and the forms of GSNR."""

from dataclasses import dataclass

from gsnr_tf.compare import baselines
from gsnr_tf.engine.signatures import signature_of
from gsnr_tf.optimizers import DistributedOptimizer
from gsnr_tf.rules import registry

RULES = registry.BY_NAME
# Arguments that are the study's to decide, and no form of a rule.
_OF_THE_STUDY = {"learning_rate", "gradient_accumulation_steps", "communicator", "name"}
SWITCHED_OFF = (("ceiling", 1.0), ("gamma", 1.0))


@dataclass(frozen=True)
class Contender:
    """One form of one rule.

    Attributes:
        rule: A key of `RULES`, or for a base one of `baselines.NAMES`.
        kind: "base", "control" or "gsnr".
        samples: k, how many samples of the gradient an update has.
        arguments: Pairs of an argument of the GSNR optimizer and its value.
        own_samples: Whether its k is its own, and so part of its name.
    """

    rule: str
    kind: str
    samples: int
    arguments: tuple = ()
    own_samples: bool = False

    @property
    def label(self):
        """What people call it, such as "GSNR ceiling=10"."""
        if self.kind != "gsnr":
            return self.kind
        words = [f"{name}={_plain(value)}" for name, value in self.arguments]
        if self.own_samples:
            words.append(f"k={self.samples}")
        return " ".join(["GSNR", *words])

    def optimizer(self, learning_rate, accumulation_steps, **more):
        """A new optimizer for all ranks; `more` are arguments that all contenders have."""
        rule = baselines.of(self.rule)
        steps = accumulation_steps if accumulation_steps > 1 else None
        common = {**rule.arguments, **more, "gradient_accumulation_steps": steps}
        if self.kind == "base":
            return DistributedOptimizer(rule.keras_class(learning_rate, **common))
        return rule.optimizer_class(learning_rate, **{**common, **dict(self.arguments)})


def parse_form(text):
    """Reads "ceiling=10,second_moment=raw,k=16".

    Returns:
        A dict; values are numbers, `True`, `False` or strings.

    Raises:
        ValueError: Something is not `name=value`, or `k` is no whole number.
    """
    form = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise ValueError(
                "A form of GSNR reads name=value,name=value, such as "
                f"'ceiling=10,second_moment=raw'. Received: {text!r}"
            )
        form[name] = _value(value)
    if not isinstance(form.get("k", 2), int):
        raise ValueError(f"k is a whole number of samples. Received: {text!r}")
    return form


def contenders_of(rule, forms, samples, control=True):
    """Base (where Keras has one), control, and each form that the rule knows.

    Args:
        rule: A key of `RULES`.
        forms: List of dicts as `parse_form` gives them. One that names an argument
            which another rule has and this one has not is left out.
        samples: k of all that do not say.
        control: Whether the control is wanted. Where Keras has no base it is there anyway,
            as what the forms are compared with.

    Raises:
        ValueError: A form names an argument that no rule has, or a value out of range.
    """
    if rule not in RULES:
        raise ValueError(f"The optimizers are {', '.join(RULES)}. Received: {rule!r}")
    has_base = RULES[rule].keras is not None
    chosen = [Contender(rule, "base", samples)] if has_base else []
    if control or not has_base:
        chosen.append(Contender(rule, "control", samples, SWITCHED_OFF))
    everyone = set().union(*map(_arguments, RULES))
    for form in forms:
        arguments = {name: value for name, value in form.items() if name != "k"}
        unknown = arguments.keys() - everyone
        if unknown:
            raise ValueError(
                f"No GSNR optimizer has the argument {min(unknown)!r}. Received: {form}"
            )
        if arguments.keys() <= _arguments(rule):
            pairs, k = tuple(sorted(arguments.items())), form.get("k", samples)
            chosen.append(Contender(rule, "gsnr", k, pairs, "k" in form))
    for contender in chosen:
        contender.optimizer(0.1, max(2, contender.samples))  # raises what it refuses
    return list(dict.fromkeys(chosen))


def _arguments(rule):
    """What a form may say about a rule."""
    return signature_of(RULES[rule].optimizer_class).arguments.keys() - _OF_THE_STUDY


def _value(text):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _plain(value):
    return f"{value:g}" if isinstance(value, float) else value
