"""The model of the transformers engine, in the process that steps it."""

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

import torch
from turnmill.schemas.capabilities import ALL_FORMATS, ALL_PENALTIES
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.local.scheduling import PREFILL_TOKENS, Batch, Facts
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.text.hf_tokenizer import HFTokenizer
from turnmill.workers.engines.torch.cpu_attention import share_heads
from turnmill.workers.engines.torch.cpu_linear import pack_linears
from turnmill.workers.engines.torch.grammars import Grammars
from turnmill.workers.engines.torch.kv_rows import works_in_rows
from turnmill.workers.engines.torch.slots import Limits, SlotBatch
from turnmill.workers.vendor.torch import computes_in_bfloat16
from turnmill.workers.vendor.transformers import is_stateful

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

log = structlog.get_logger(__name__)

DEFAULT_CONTEXT_WINDOW = 4096

#: Ways in which a checkpoint may be quantized, and the packages of our extra that read them.
READERS = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors"}


def load_batch(settings: EngineSettings) -> tuple[Batch, Facts]:
    path = prepare_model(settings, "safetensors")
    disable_progress_bar()
    whole_config = AutoConfig.from_pretrained(path)
    check_quantized(whole_config, settings)
    config = whole_config.get_text_config()
    model = _load_model(path, settings)
    _refuse_other_caches(model)
    context_window = _context_window(config, settings)
    cached_tokens = int(settings.kv_cache_gib * 2**30 / _kv_bytes_per_token(config, model.dtype))
    limits = Limits(
        settings.max_batch_size,
        cached_tokens,
        settings.prefill_tokens or PREFILL_TOKENS,
        settings.prefix_cache,
    )
    facts = Facts(
        context_window=max(1, min(context_window, cached_tokens)),
        vocabulary_size=model.get_input_embeddings().num_embeddings,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    facts = replace(facts, logprobs=True, logit_bias=True, penalties=ALL_PENALTIES)
    tokenizer = HFTokenizer(path)
    end_tokens = _end_tokens(model, tokenizer)
    grammars = _grammars(tokenizer, facts, end_tokens)
    if grammars is not None:
        facts = replace(facts, formats=ALL_FORMATS, continues_formats=True)
    return SlotBatch(model, end_tokens, limits, grammars), facts


def _grammars(tokenizer: HFTokenizer, facts: Facts, end_tokens: frozenset[int]) -> Grammars | None:
    """None where the tokenizer cannot be read byte by byte: then no reply has a format."""
    try:
        return Grammars(tokenizer.fast, facts.vocabulary_size, end_tokens)
    except ValueError as error:
        log.warning("engine.no_formats", reason=str(error))
        return None


def check_quantized(config: "PretrainedConfig", settings: EngineSettings) -> None:
    """Whether a checkpoint that is quantized already can be loaded as the settings say.

    Raises:
        SettingsError: it is to be quantized once more, or its reader is not installed.
    """
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not found:
        return
    method = found.get("quant_method", "bitsandbytes")  # which did not always write it down
    if settings.quantization != "none":
        raise SettingsError(
            f"'{settings.model}' is quantized already ({method}). Leave "
            "TURNMILL_ENGINE__QUANTIZATION out, or name a model that is not quantized."
        )
    if method in READERS and find_spec(READERS[method]) is None:
        raise SettingsError(
            f"'{settings.model}' is quantized with {method}, which is not installed: "
            "pip install 'turnmill[transformers]'."
        )


def _load_model(path: str, settings: EngineSettings) -> "PreTrainedModel":
    device = choose_device(settings)
    dtype = choose_dtype(settings, device)
    if device.type == "cpu":
        share_heads()
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, device_map={"": device}, **_quantization(settings, dtype)
    )
    if device.type == "cpu" and not getattr(model, "is_quantized", False):
        pack_linears(model)
    return model.eval()


def _quantization(settings: EngineSettings, dtype: torch.dtype) -> dict[str, object]:
    """bitsandbytes: https://arxiv.org/abs/2208.07339 (int8), 2305.14314 (nf4).

    No argument where there is nothing to say: a None would hide how the checkpoint is quantized
    from transformers, which then reads its packed weights as plain ones, or makes up random ones.
    """
    if settings.quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    if settings.quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        return {"quantization_config": config}
    return {}


def choose_device(settings: EngineSettings) -> torch.device:
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"There is no device '{name}': {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("There is no GPU that this PyTorch can use. Choose device=cpu.")
    return device


def choose_dtype(settings: EngineSettings, device: torch.device) -> torch.dtype:
    """16 bits where the hardware computes in them; elsewhere they are slower than 32."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    if settings.quantization == "int8":
        return torch.float16  # what its kernels compute in, whatever they are given
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if computes_in_bfloat16() else torch.float32


def _refuse_other_caches(model: "PreTrainedModel") -> None:
    """Slots move rows of keys and values; a recurrent state has neither."""
    if is_stateful(model) or not getattr(model, "can_generate", bool)() or not works_in_rows(model):
        raise SettingsError(
            "The transformers engine needs a causal model with a KV cache that can be kept in "
            "rows; this architecture's cannot."
        )


def _context_window(config: "PretrainedConfig", settings: EngineSettings) -> int:
    limits = (settings.context_window, getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=DEFAULT_CONTEXT_WINDOW)


def _kv_bytes_per_token(config: "PretrainedConfig", dtype: torch.dtype) -> int:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return int(2 * config.num_hidden_layers * heads * head_size * dtype.itemsize)


def _end_tokens(model: "PreTrainedModel", tokenizer: HFTokenizer) -> frozenset[int]:
    """Some models end a turn with another token than a text."""
    end = model.generation_config.eos_token_id
    tokens = end if isinstance(end, list) else [end]
    return frozenset(token for token in [*tokens, tokenizer.end_token] if token is not None)
