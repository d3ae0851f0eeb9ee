"""The engine for CPUs: OpenVINO GenAI's continuous batching, without torch.

It opens GGUF files (rewritten to weights that it reads exactly, `workers/engines/models.py`) and
folders that hold an exported OpenVINO model.
"""

from functools import partial

from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.batching import BatchingEngine
from turnmill.workers.engines.local.child import ChildScheduler
from turnmill.workers.engines.openvino.text_side import load_text

LOAD_BATCH = "turnmill.workers.engines.openvino.model:load_batch"


class OpenVINOEngine(BatchingEngine):
    """A model on the CPU; `max_batch_size` turns at once."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, load_text, partial(ChildScheduler, LOAD_BATCH))
