"""Low-rank adapters (LoRA, Hu et al. 2021) by peft: train few weights, then merge them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: The adapter's output is scaled by alpha / rank.
_ALPHA_PER_RANK = 2


def attach(model: "PreTrainedModel", rank: int) -> "PreTrainedModel":
    """Freeze the model and put adapters of this rank beside every linear layer but the head."""
    from peft import LoraConfig, get_peft_model

    kind = "SEQ_CLS" if hasattr(model, "num_labels") and hasattr(model, "score") else "CAUSAL_LM"
    config = LoraConfig(
        r=rank, lora_alpha=_ALPHA_PER_RANK * rank, target_modules="all-linear", task_type=kind
    )
    with _quiet():
        return get_peft_model(model, config)


def merge(adapted: "PeftModel") -> "PreTrainedModel":
    """Add the adapters to the weights they stand beside, and return the plain model."""
    with _quiet():
        return adapted.merge_and_unload()


@contextmanager
def _quiet() -> Iterator[None]:
    """peft 0.21 still calls names that transformers 5 has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
