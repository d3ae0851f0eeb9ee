"""Steps for the tests of the pipeline, registered as "module:class" like the real ones."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turnmill.compression.step import Options, Progress, State

#: The path of a file: while it exists, the step below kills its process once, half-way.
KILL_FILE = "TEST_COMPRESSION_KILL"
NUDGE = f"{__name__}:Nudge"


class NudgeOptions(Options):
    size: float = 0.01
    rounds: int = 4


class Nudge:
    """Adds random numbers to a matrix, in rounds, and keeps each round in its scratch folder."""

    options = NudgeOptions

    def __call__(
        self, state: State, options: NudgeOptions, progress: Progress
    ) -> Mapping[str, Any]:
        import torch

        weight = state.model.get_output_embeddings().weight.data
        kept = state.folder / "kept.pt"
        done, random = 0, torch.Generator().manual_seed(state.seed)
        if kept.exists():
            done, values, random_state = torch.load(kept)
            weight.copy_(values)
            random.set_state(random_state)
        progress.start(options.rounds, "nudging")
        for number in range(done, options.rounds):
            weight += options.size * torch.randn(weight.shape, generator=random)
            aside = kept.with_suffix(".new")
            torch.save((number + 1, weight, random.get_state()), aside)
            aside.rename(kept)
            progress.advance()
            self._perhaps_die(number, options)
        return {"rounds": options.rounds}

    def _perhaps_die(self, number: int, options: NudgeOptions) -> None:
        path = os.environ.get(KILL_FILE)
        if path and number == options.rounds // 2 and Path(path).exists():
            Path(path).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
