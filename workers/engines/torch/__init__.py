"""The transformers engine: continuous batching in torch."""
