"""The engine for GPUs: vLLM, and what runs in its processes."""
