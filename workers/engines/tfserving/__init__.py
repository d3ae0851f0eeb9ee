"""The engine for TensorFlow Serving."""
