"""Vision: Fashion-MNIST, by a small CNN and by a small ResNet with BatchNorm.

python keras_examples/vision_task.py SmallCNN --batch-size 1000
python keras_examples/vision_task.py SmallResNet --size large
gsnr-tf compare keras_examples/vision_task.py:SmallResNet --batch 1000,4000
"""

import fashion_mnist
import keras
import train
from keras import layers

from gsnr_tf.compare import Data, Split, Task


class FashionMNIST(Task):
    """50,000 pictures to train on; the score is the share named rightly."""

    metric, higher_is_better, target = "accuracy", True, 0.85
    loss = "sparse_categorical_crossentropy"
    learning_rates = {"adam": 0.01, "lamb": 0.04}
    regularizer, regularizers = "weight_decay", (0.0, 0.01, 0.1)

    def load(self):
        return Data(*(Split(*part) for part in fashion_mnist.load()))

    def score(self, model, features, targets):
        return float(self.row_scores(model, features, targets).mean())

    def row_scores(self, model, features, targets):
        chances = model.predict(features, batch_size=1000, verbose=0)
        return chances.argmax(axis=1) == targets


class SmallCNN(FashionMNIST):
    """Two convolutions that halve the picture, and a dense layer."""

    sizes = {
        "default": {"width": 16, "epochs": 5},
        "large": {"width": 32, "epochs": 20},
    }

    def build_model(self):
        pictures = keras.Input((28, 28, 1))
        x = layers.Rescaling(1 / 255)(pictures)
        for factor in (1, 2):
            x = layers.Conv2D(factor * self.width, 3, strides=2, padding="same", activation="relu")(
                x
            )
        x = layers.Dense(4 * self.width, activation="relu")(layers.Flatten()(x))
        return keras.Model(pictures, layers.Dense(10, activation="softmax")(x))


class SmallResNet(FashionMNIST):
    """A residual network: `blocks` blocks at each of three widths, BatchNorm throughout."""

    target = 0.855
    sizes = {
        "default": {"width": 8, "blocks": 1, "epochs": 3},
        "large": {"width": 16, "blocks": 3, "epochs": 20},
    }

    def build_model(self):
        pictures = keras.Input((28, 28, 1))
        x = layers.Rescaling(1 / 255)(pictures)
        x = normalized_convolution(x, self.width, strides=2)
        for stage, factor in enumerate((1, 2, 4)):
            for block in range(self.blocks):
                halve = stage > 0 and block == 0
                x = residual(x, factor * self.width, strides=2 if halve else 1)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(pictures, layers.Dense(10, activation="softmax")(x))


def normalized_convolution(x, filters, strides=1, size=3, relu=True):
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    # 0.99, Keras' momentum, would still remember the start after a hundred steps.
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


def residual(x, filters, strides):
    """Two convolutions beside a shortcut, which is projected where the shape changes.

    Pooled, then projected: TensorFlow 2.21 on a CPU with several threads writes beyond its
    memory in the gradient of a 1 x 1 convolution with strides.
    """
    inner = normalized_convolution(x, filters, strides)
    inner = normalized_convolution(inner, filters, relu=False)
    if strides > 1 or x.shape[-1] != filters:
        x = layers.AveragePooling2D(strides, padding="same")(x) if strides > 1 else x
        x = normalized_convolution(x, filters, size=1, relu=False)
    return layers.ReLU()(layers.Add()([x, inner]))


if __name__ == "__main__":
    train.main([SmallCNN, SmallResNet])
