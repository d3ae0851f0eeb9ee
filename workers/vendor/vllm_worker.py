"""Holds on vLLM's worker: seeds on a CPU. Named by its path in `engines/vllm/engine.py`.

It runs in vLLM's own process.
"""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

READ_IN = {"vllm": "0.32.0"}
HOLDS = {
    "vllm.v1.worker.gpu_worker:Worker.sample_tokens": "025ddcf37ecb",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens": "31c5090a90c3",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync": "3ed5aaf64425",
}


class SeededCPUWorker(CPUWorker):  # type: ignore[misc]
    """A worker in which turns with a seed may have long prompts.

    A step draws a token for every turn, and throws it away where the prompt goes on. vLLM 0.32
    then sets the turn's generator back by an offset, which generators on a CPU do not have: its
    process ends, and all its turns with it. Here those tokens are drawn from no turn's generator.
    """

    def sample_tokens(self, grammar_output: Any) -> Any:
        runner = self.model_runner
        generators, is_thrown_away = runner.input_batch.generators, runner.discard_request_mask.np
        kept = {row: generators.pop(row) for row in list(generators) if is_thrown_away[row]}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(kept)
