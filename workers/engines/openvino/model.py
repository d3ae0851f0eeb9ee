"""The model in OpenVINO, in the process that steps it."""

import math
from functools import partial
from pathlib import Path

import structlog

from turnmill.schemas.capabilities import ALL_FORMATS, ALL_PENALTIES
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.scheduling import CPU_PREFILL_TOKENS, Batch, Facts
from turnmill.workers.engines.openvino.batch import OpenVINOBatch
from turnmill.workers.engines.openvino.namespaces import Namespaces, have_second_ids
from turnmill.workers.engines.openvino.requests import new_tokens, tensor
from turnmill.workers.engines.openvino.setup import (
    block_record,
    context_window,
    device,
    embedding_rows,
    openvino_path,
    properties,
)
from turnmill.workers.vendor.openvino import openvino_genai

log = structlog.get_logger(__name__)


def load_batch(settings: EngineSettings) -> tuple[Batch, Facts]:
    path = openvino_path(settings)
    pipeline = _pipeline(path, settings)
    vocabulary_size = max(pipeline.get_tokenizer().get_vocab().values()) + 1
    rows = embedding_rows(path, vocabulary_size)
    if settings.prefix_cache and not have_second_ids(rows, partial(_greedy, pipeline)):
        # Without namespaces tenants would find out what others asked.
        log.warning("engine.prefix_cache_off", model=settings.model)
        settings = settings.model_copy(update={"prefix_cache": False})
        del pipeline
        pipeline = _pipeline(path, settings)
    facts = Facts(
        context_window=context_window(path, settings),
        vocabulary_size=vocabulary_size,
        dtype=settings.dtype,
        formats=ALL_FORMATS,
        penalties=ALL_PENALTIES,
    )
    namespaces = Namespaces(rows) if settings.prefix_cache else None
    blocks = block_record(path, settings)
    slots = settings.max_batch_size
    return OpenVINOBatch(pipeline, slots, _step_tokens(settings), blocks, namespaces), facts


def _pipeline(path: Path, settings: EngineSettings) -> openvino_genai.ContinuousBatchingPipeline:
    return openvino_genai.ContinuousBatchingPipeline(
        str(path), _scheduler_config(settings), device(settings), properties(settings)
    )


def _greedy(pipeline: openvino_genai.ContinuousBatchingPipeline, ids: list[int]) -> list[int]:
    """The four likeliest tokens after a prompt."""
    config = openvino_genai.GenerationConfig(max_new_tokens=4, ignore_eos=True)
    handle = pipeline.add_request(0, tensor(ids), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return [token.id for token in new_tokens(handle)]


def _scheduler_config(settings: EngineSettings) -> openvino_genai.SchedulerConfig:
    config = openvino_genai.SchedulerConfig()
    config.cache_size = math.ceil(settings.kv_cache_gib)
    # Turns that were told to leave are still counted until the next step.
    config.max_num_seqs = 2 * settings.max_batch_size
    config.enable_prefix_caching = settings.prefix_cache
    config.dynamic_split_fuse = True
    config.max_num_batched_tokens = _step_tokens(settings)
    return config


def _step_tokens(settings: EngineSettings) -> int:
    """The next token of each running turn, and pieces of prompts."""
    return settings.max_batch_size + (settings.prefill_tokens or CPU_PREFILL_TOKENS)
