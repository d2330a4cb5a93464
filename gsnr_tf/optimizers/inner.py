"""The optimizer that makes the updates, of a model whose loss may be scaled."""

import keras


def inner_optimizer(model):
    """The optimizer of a model, or of an optimizer around it that scales the loss.

    Args:
        model: `keras.Model` that is compiled, or an optimizer.
    """
    optimizer = getattr(model, "optimizer", model)
    return getattr(optimizer, "inner_optimizer", optimizer)


def rate_variable(model):
    """The variable of a learning rate that can be set; `None` for a schedule or a function.

    Args:
        model: As for `inner_optimizer`; its optimizer may be Keras' own.
    """
    rate = inner_optimizer(model)._learning_rate
    return rate if isinstance(rate, keras.Variable) else None
