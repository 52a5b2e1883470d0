"""Small Keras networks as tf2onnx writes them: python make_keras.py, with tensorflow-cpu 2.21, keras 3.15, tf2onnx 1.17."""

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

keras.utils.set_random_seed(1)


def save(name: str, model: keras.Model, *shapes: list[int | None], dtype: type = tf.float32) -> None:
    """By a traced function, as tf2onnx's manual does it for Keras 3."""
    spec = [tf.TensorSpec(shape, dtype, name=f"x{n}") for n, shape in enumerate(shapes)]
    call = tf.function(lambda *xs: model(xs[0] if len(xs) == 1 else list(xs), training=False))
    tf2onnx.convert.from_function(call, input_signature=spec, opset=17, output_path=f"{name}.onnx")


def mlp() -> keras.Model:
    """Normalised input, dense layers, a softmax."""
    return keras.Sequential(
        [keras.Input((6,)), layers.BatchNormalization(), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    )


def cnn() -> keras.Model:
    """Channels last, depthwise convolution, pooling, a residual."""
    x = keras.Input((16, 24, 3))
    y = layers.Conv2D(4, 3, padding="same", strides=2)(x)
    y = layers.Activation("relu6")(layers.BatchNormalization()(y))
    z = layers.DepthwiseConv2D(3, padding="same")(y)
    y = layers.Add()([y, z])
    y = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(y))
    return keras.Model(x, layers.Dense(2)(y))


def lstm() -> keras.Model:
    """A recurrent network over an open number of steps: a loop in TensorFlow's graph."""
    x = keras.Input((None, 4))
    return keras.Model(x, layers.Dense(2)(layers.Bidirectional(layers.LSTM(5))(x)))


def attention() -> keras.Model:
    """A transformer's block over an embedding."""
    x = keras.Input((8,), dtype="int32")
    y = layers.Embedding(11, 8)(x)
    z = layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.LayerNormalization()(layers.Add()([y, z]))
    return keras.Model(x, layers.Dense(2, "tanh")(layers.GlobalAveragePooling1D()(y)))


if __name__ == "__main__":
    save("keras_mlp", mlp(), [None, 6])
    save("keras_cnn", cnn(), [None, 16, 24, 3])
    save("keras_lstm", lstm(), [None, None, 4])
    save("keras_attention", attention(), [None, 8], dtype=tf.int32)
    print(np.__version__, tf.__version__, keras.__version__, tf2onnx.__version__)
