"""The step `finetune`: train on the user's dialogues, in full or by LoRA.

It makes a teacher, adapts a model to a domain, and recovers what other steps lost.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from turnmill.compression.distill.losses import hard_loss
from turnmill.compression.distill.training import TrainingOptions, train
from turnmill.compression.prune.l1 import penalty
from turnmill.compression.prune.masks import KeptZeros
from turnmill.compression.step import Progress, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def next_token_loss(model: "PreTrainedModel", windows: Tensor) -> Tensor:
    """Return the mean cross-entropy of each token of the windows `[n, length]` after the first."""
    logits = model(input_ids=windows, use_cache=False).logits
    return hard_loss(logits[:, :-1].float(), windows[:, 1:])


def rows_of_length(windows: Tensor, length: int) -> Tensor:
    """Cut windows `[n, longer]` into windows of `length` tokens; a remainder is left out."""
    length = min(length, windows.shape[1])
    whole = windows.shape[1] // length * length
    return windows[:, :whole].reshape(-1, length)


class Finetune:
    """Minimise the cross-entropy of the training windows."""

    options = TrainingOptions

    def __call__(
        self, state: State, options: TrainingOptions, progress: Progress
    ) -> Mapping[str, object]:
        windows = rows_of_length(state.texts.train, options.length)
        done = train(
            state.model,
            len(windows),
            lambda model, rows: next_token_loss(model, windows[rows]),
            options,
            seed=state.seed,
            folder=state.folder,
            progress=progress,
            data=state.texts.digest,
        )
        state.become_dense()
        told = {"zeros": round(KeptZeros(state.model).share, 4)}
        if options.l1:
            told["l1_norm"] = round(float(penalty(state.model).detach()), 2)
        return vars(done) | told
