"""The engine for any causal language model of Hugging Face transformers, on a CPU or a GPU.

Turns are batched by `slots.py`, not by the library's own continuous batching, where one bad
turn ends the batch for everyone.
"""

from functools import partial

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.batching import BatchingEngine
from turnmill.workers.engines.local.checkpoint import load_text
from turnmill.workers.engines.local.child import ChildScheduler

LOAD_BATCH = "turnmill.workers.engines.torch.model:load_batch"


class TransformersEngine(BatchingEngine):
    """A model in torch; `max_batch_size` turns at once."""

    def __init__(self, settings: EngineSettings) -> None:
        if settings.quantization == "int4":
            raise SettingsError(
                "The transformers engine's 4-bit weights are called nf4; int4 is OpenVINO's."
            )
        super().__init__(settings, load_text, partial(ChildScheduler, LOAD_BATCH))
