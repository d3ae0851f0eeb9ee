"""Training windows that the teacher writes itself, from a random first token on.

LLM-QAT (Liu et al. 2023, section 3.1): what a model says shows what it knows. Such windows keep a
student general where the user's dialogues alone would narrow it, and need no other corpus.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from turnmill.compression.step import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH = 32


def written_windows(
    load: "Callable[[], PreTrainedModel]",
    count: int,
    length: int,
    *,
    vocabulary: int,
    seed: int,
    path: Path,
    progress: Progress,
) -> Tensor:
    """Return windows `[count, length]` of token ids sampled from the model, int64.

    They are kept in the file `path`; the model is not loaded if it holds as many already.

    Args:
        load: loads the model.
        vocabulary: how many tokens may be written. Many embeddings have rows beyond them, which
            stand for no text, and which a student need not have.
    """
    name = f"{count} {length} {seed} {vocabulary}"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["name"] == name:
            windows: Tensor = kept["windows"]
            return windows
    windows = _write(load().eval(), count, length, vocabulary, seed, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    torch.save({"name": name, "windows": windows}, aside)
    aside.replace(path)
    return windows


@torch.no_grad()  # type: ignore[untyped-decorator]
def _write(
    model: "PreTrainedModel",
    count: int,
    length: int,
    vocabulary: int,
    seed: int,
    progress: Progress,
) -> Tensor:
    rows = model.config.vocab_size
    progress.start(count, "teacher writes")
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for first in torch.randint(min(rows, vocabulary), (count, 1)).split(_BATCH):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                written = model.generate(
                    first,
                    attention_mask=torch.ones_like(first),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    min_new_tokens=length - 1,
                    max_new_tokens=length - 1,
                    suppress_tokens=list(range(vocabulary, rows)) or None,
                )
            found.append(written)
            progress.advance(len(first))
    return torch.cat(found)
