"""Mixed precision for a model that is already made."""

import logging

import keras

_log = logging.getLogger("gsnr_tf")


def set_precision(model, policy):
    """Gives the layers of a model a dtype policy, in place; returns how many got it.

    Layers that were given a policy of their own (any but float32) keep it. So do the
    layers that make the outputs of a Sequential or functional model: softmax and loss
    need their digits. Keras' global policy is left alone.

    Args:
        model: A `keras.Model` with float32 variables.
        policy: "mixed_float16" or "mixed_bfloat16".
    """
    keep = {id(layer) for layer in _output_layers(model)}
    changed = [
        layer
        for layer in model._flatten_layers()
        if layer.dtype_policy.name == "float32"
        and id(layer) not in keep
        and not isinstance(layer, keras.layers.InputLayer)
    ]
    for layer in changed:
        layer.dtype_policy = policy
    _log.info("%d layers of %s compute in %s.", len(changed), model.name, policy)
    return len(changed)


def _output_layers(model):
    """Layers that make the outputs, also where these are models themselves."""
    for tensor in keras.tree.flatten(getattr(model, "outputs", None) or []):
        layer = tensor._keras_history.operation
        if isinstance(layer, keras.Model):
            yield from _output_layers(layer)
        elif isinstance(layer, keras.layers.Layer):
            yield layer
