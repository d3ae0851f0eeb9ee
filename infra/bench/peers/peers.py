"""What Turnmill's engines are compared with."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from turnmill.infra.bench.measure import Run, offline, peak_mib
from turnmill.infra.bench.peers.llama_server import serving_llama
from turnmill.infra.bench.workload import Chat
from turnmill.schemas.settings import EngineSettings, SecretUrl
from turnmill.workers.engines.models import prepare_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Of each of llama.cpp's slots: room for the longest of the chats.
LLAMA_CONTEXT_WINDOW = 1024
#: A chat may wait so long for a slot, and then for its first token.
LLAMA_QUEUE_S = 900


def engine_dtype(settings: EngineSettings) -> str:
    """What the transformers engine computes in, with these settings on this machine."""
    from turnmill.workers.engines.torch.model import choose_device, choose_dtype

    return str(choose_dtype(settings, choose_device(settings))).removeprefix("torch.")


def naive(settings: EngineSettings, chats: Sequence[Chat], most_s: float) -> Run:
    """Plain `generate`, one chat after the other, for no longer than `most_s` seconds."""
    import torch

    model, tokenizer = load(settings)
    run = Run()
    prompts = [prompt_ids(tokenizer, chat) for chat in chats]
    with torch.inference_mode():
        generate(model, prompts[0], 4)
        started_at = time.perf_counter()
        for chat, ids in zip(chats, prompts, strict=True):
            run.tokens += generate(model, ids, chat.max_tokens)
            run.prompt_tokens += ids.shape[1]
            run.chats += 1
            run.took_s = time.perf_counter() - started_at
            if run.took_s > most_s:
                break
    run.peak_mib = peak_mib()
    return run


def manager(settings: EngineSettings, chats: Sequence[Chat]) -> Run:
    """transformers' own continuous batching, with the cache sizes it needs on a CPU."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, tokenizer = load(settings)
    prompts = [prompt_ids(tokenizer, chat)[0].tolist() for chat in chats]
    generation = GenerationConfig(
        max_new_tokens=128,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    cache = ContinuousBatchingConfig(page_size=16, num_blocks=2048, max_batch_tokens=512)
    run = Run()
    with model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=cache
    ) as manager_:
        started_at = time.perf_counter()
        for ids, chat in zip(prompts, chats, strict=True):
            manager_.add_request(ids, max_new_tokens=chat.max_tokens)
        while run.chats < len(chats):
            result = manager_.get_result(timeout=60)
            if result is None:
                raise RuntimeError("transformers' manager has stopped.")
            if result.is_finished():
                run.chats += 1
                run.tokens += len(result.generated_tokens)
        run.took_s = time.perf_counter() - started_at
    run.peak_mib = peak_mib()
    return run


def vllm(settings: EngineSettings, chats: Sequence[Chat]) -> Run:
    """vLLM's own offline class: all prompts handed over at once, nothing streamed."""
    import torch
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    path = prepare_model(settings, "safetensors")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = LLM(
        path,
        dtype="bfloat16" if settings.dtype == "auto" else settings.dtype,
        max_num_seqs=settings.max_batch_size,
        max_model_len=settings.context_window,
        kv_cache_memory_bytes=int(settings.kv_cache_gib * 2**30),
        enable_prefix_caching=False,
        enforce_eager=not torch.cuda.is_available(),
    )
    prompts = [{"prompt_token_ids": prompt_ids(tokenizer, chat)[0].tolist()} for chat in chats]
    params = [SamplingParams(temperature=0, max_tokens=chat.max_tokens) for chat in chats]
    model.generate(prompts[:1], params[:1], use_tqdm=False)
    started_at = time.perf_counter()
    outputs = model.generate(prompts, params, use_tqdm=False)
    return Run(
        tokens=sum(len(output.outputs[0].token_ids) for output in outputs),
        prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
        chats=len(outputs),
        took_s=time.perf_counter() - started_at,
    )


def llama(settings: EngineSettings, chats: Sequence[Chat], warm_up: Sequence[Chat]) -> Run:
    """llama.cpp's server with 16-bit weights, asked all at once through our own engine for
    OpenAI-compatible endpoints.
    """
    model = prepare_model(settings, "gguf")
    name, slots = settings.model_name, settings.max_batch_size
    window = settings.context_window or LLAMA_CONTEXT_WINDOW
    with serving_llama(model, name, slots, window) as server:
        asks = EngineSettings(
            name="openai_http",
            endpoints=(SecretUrl(server.url),),
            remote_model=name,
            silence_s=LLAMA_QUEUE_S,
        )
        run = offline(asks, chats, warm_up)
    run.peak_mib = peak_mib()
    return run


def load(settings: EngineSettings) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = prepare_model(settings, "safetensors")
    dtype = torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map={"": device})
    return model.eval(), AutoTokenizer.from_pretrained(path)


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", chat: Chat) -> "torch.Tensor":
    messages = [{"role": str(each.role), "content": each.content} for each in chat.messages]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


def generate(model: "PreTrainedModel", ids: "torch.Tensor", limit: int) -> int:
    import torch

    ids = ids.to(model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        pad_token_id=model.generation_config.eos_token_id,
    )
    return int(output.shape[1] - ids.shape[1])
