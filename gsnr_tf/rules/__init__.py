"""The update rules: equations on tensors, with no Keras, no rank and no optimizer.

Nothing is imported here, so that `registry` can be read without TensorFlow.
"""
