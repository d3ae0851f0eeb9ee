"""Holds on how vLLM takes images."""

from collections.abc import Sequence

from vllm.inputs import MultiModalInput
from vllm.model_executor.model_loader import get_model_cls
from vllm.v1.engine.async_llm import AsyncLLM

READ_IN = {"vllm": "0.32.0"}
#: `get_mm_hashes`: an id that comes with an image takes the place of its hash, in all caches.
HOLDS = {
    "vllm.renderers.base:BaseRenderer._process_multimodal": "f6b1d99fdbb3",
    "vllm.renderers.base:BaseRenderer._process_mm_uuids": "429e28158c84",
    "vllm.multimodal.processing.inputs:ProcessorInputs.get_mm_hashes": "fa539182e5a1",
    "vllm.multimodal.processing.context:BaseProcessingInfo.allowed_mm_limits": "0be7ee12e57d",
    "vllm.model_executor.models.interfaces:SupportsMultiModal.get_placeholder_str": "2cdf4037e100",
    "vllm.model_executor.model_loader.utils:get_model_cls": "0ee57b38d9c3",
}


def image_limit(llm: AsyncLLM) -> int:
    """Return how many images a prompt may have; 0: the model does not see."""
    if not llm.model_config.supports_multimodal_inputs:
        return 0
    processor = llm.renderer.mm_processor
    return 0 if processor is None else int(processor.info.allowed_mm_limits.get("image", 0))


def image_mark(llm: AsyncLLM, number: int) -> str | None:
    """Return what stands for the nth image of a prompt, from 1 on; None: the model does not say."""
    try:
        mark: str | None = get_model_cls(llm.model_config).get_placeholder_str("image", number)
    except ValueError:
        return None
    return mark


def image_lengths(inputs: MultiModalInput) -> Sequence[int]:
    """Return how many tokens of a rendered prompt each of its images has, marks around it too."""
    return [each.length for each in inputs["mm_placeholders"]["image"]]
