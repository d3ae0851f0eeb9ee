"""vLLM's worker for a CPU, named by its path in `vllm.py` and run in vLLM's own process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker


class SeededCPUWorker(CPUWorker):  # type: ignore[misc]
    """A worker in which turns with a seed may have long prompts.

    A step draws a token for every turn, and throws it away where the prompt goes on. vLLM 0.32
    then sets the turn's generator back by an offset, which generators on a CPU do not have: its
    process ends, and all its turns with it. Here those tokens are drawn from no turn's generator.
    """

    def sample_tokens(self, grammar_output: Any) -> Any:
        with self._set_aside(self._thrown_away()):
            return super().sample_tokens(grammar_output)

    def _thrown_away(self) -> list[int]:
        """Rows of the step whose token nobody gets."""
        runner = self.model_runner
        mask = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        return [int(row) for row in np.flatnonzero(mask)]

    @contextmanager
    def _set_aside(self, rows: list[int]) -> Iterator[None]:
        generators = self.model_runner.input_batch.generators
        kept = {row: generators.pop(row) for row in rows if row in generators}
        try:
            yield
        finally:
            generators.update(kept)
