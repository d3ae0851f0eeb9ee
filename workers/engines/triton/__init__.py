"""The engine for NVIDIA Triton, and the model that runs inside it."""
