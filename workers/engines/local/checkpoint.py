"""The text side of engines that read transformers checkpoints."""

from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.batching import TextSide
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.text.hf_tokenizer import HFTokenizer


def load_text(settings: EngineSettings) -> TextSide:
    """Load a checkpoint's tokenizer and chat template."""
    tokenizer = HFTokenizer(prepare_model(settings, "safetensors"))
    return TextSide(tokenizer.template, tokenizer.encode, tokenizer.decode, tokenizer.bytes_of)
