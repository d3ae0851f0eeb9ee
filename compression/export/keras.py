"""Convert a Keras model to TensorFlow Lite with float16 weights, by TensorFlow's own converter.

The program trains a small classifier, converts it, and compares the answers of both:

    .venv-tensorflow/bin/python -m turnmill.compression.export.keras classifier.tflite

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/post_training_float16_quant
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

#: float32 [n, features].
Rows = NDArray[numpy.float32]


def to_float16(model: "keras.Model") -> bytes:
    """Return the model as a .tflite file whose weights are float16."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    content: bytes = converter.convert()
    return content


def run(content: bytes, inputs: Rows) -> Rows:
    """Return what a .tflite file answers to a batch of float32 rows, one row at a time."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers = []
    for row in inputs:
        interpreter.set_tensor(source["index"], row[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(result["index"])[0])
    return numpy.stack(answers)


def trained_classifier(seed: int = 0) -> "tuple[keras.Model, Rows]":
    """Train a classifier of points by their angle; return it and the points, float32 [n, 2]."""
    import keras

    keras.utils.set_random_seed(seed)
    points = numpy.random.default_rng(seed).normal(size=(512, 2)).astype(numpy.float32)
    labels = (numpy.arctan2(points[:, 1], points[:, 0]) // (numpy.pi / 2) + 2).astype(int) % 4
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(points, labels, epochs=5, verbose=0)
    return model, points


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, convert and compare, and print what came of it as JSON."""
    parser = argparse.ArgumentParser(description="A Keras model as TensorFlow Lite, in float16.")
    parser.add_argument("file", type=Path, help="where the .tflite file goes")
    chosen = parser.parse_args(arguments)
    model, points = trained_classifier()
    content = to_float16(model)
    chosen.file.write_bytes(content)
    differences = numpy.abs(run(content, points) - model.predict(points, verbose=0))
    told = {
        "file": str(chosen.file),
        "bytes": len(content),
        "float32_bytes": 4 * model.count_params(),
        "largest_difference": float(differences.max()),
    }
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
