"""`make bench-gpu`: the transformers engine beside plain `generate`, with what a GPU machine has.

Needs torch, transformers and accelerate, and of our own dependencies pydantic, pydantic-settings,
psutil, rich, structlog and jinja2; no server and no network. The model is made on the spot with
random weights: its replies are noise, but take as long as a trained model's of that shape.

Example: python -m turnmill.infra.bench.gpu --chats 64
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from turnmill.infra.bench.engines import Plan, run_plan
from turnmill.infra.bench.report import WIDTH, Journal, show
from turnmill.infra.bench.workload import WORDS
from turnmill.schemas.settings import EngineSettings

#: Layers, hidden size, heads, heads of keys and values, inner size, vocabulary: as Llama 3.2's
#: model of 1.2 billion parameters, but for the vocabulary; and one for trying this on a CPU.
SIZES = {"1b": (16, 2048, 32, 8, 8192, 32_000), "tiny": (2, 64, 4, 2, 128, 1_000)}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def make_model(folder: Path, size: str) -> None:
    """A Llama with random weights and a tokenizer of as many words, as a checkpoint."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    layers, hidden, heads, kv_heads, inner, vocabulary = SIZES[size]
    words = ["<unk>", "<end>", *dict.fromkeys(WORDS)]
    words += [f"w{number}" for number in range(len(words), vocabulary)]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",  # noqa: S106
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="The transformers engine beside `generate`.")
    parser.add_argument("--size", choices=SIZES, default="1b", help="the model that is made")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--naive-s", type=float, default=60, help="seconds of `generate`")
    parser.add_argument("--out", type=Path, default=Path("bench-runs"))
    options = parser.parse_args()
    if options.device.startswith("cuda"):
        _require_gpu()
    console = Console(width=WIDTH, highlight=False)
    folder = options.out / time.strftime("%Y%m%d-%H%M%S-gpu")
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="turnmill-bench-") as model:
        make_model(Path(model), options.size)
        settings = EngineSettings(
            name="transformers",
            model=model,
            device=options.device,
            kv_cache_gib=8,
            max_batch_size=64,
        )
        plan = Plan((settings,), options.chats, naive_s=options.naive_s, rounds=1, broker=None)
        results = run_plan(plan, Journal(console, folder / "figures.jsonl").note)
    show(results, console)
    console.print(f"Random weights, size {options.size}, on {options.device}. Figures: {folder}")


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit("This machine has no GPU that torch can use. Try --device cpu --size tiny.")


if __name__ == "__main__":
    main()
