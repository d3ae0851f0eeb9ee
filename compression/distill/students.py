"""Where a student comes from: some layers of its teacher, a narrower one, or another checkpoint."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from turnmill.compression.prune.narrow import narrow_mlp
from turnmill.compression.prune.structured import decoder_layers, evenly_spaced, keep_layers
from turnmill.compression.step import Progress
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def from_layers(teacher: "PreTrainedModel", layers: int | tuple[int, ...]) -> "PreTrainedModel":
    """Return a student of these layers of the teacher, or of this many, evenly spaced.

    Raises:
        InvalidInput: the teacher has no such layers.
    """
    student: PreTrainedModel = keep_layers(teacher, places(teacher, layers))
    return student


def places(teacher: "PreTrainedModel", layers: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers themselves, or so many of the teacher's, evenly spaced.

    Raises:
        InvalidInput: it has not so many.
    """
    if not isinstance(layers, int):
        return layers
    count = len(decoder_layers(teacher))
    if not 1 <= layers <= count:
        raise InvalidInput(
            f"A student of {layers} layers cannot be cut out of the {count} of its teacher.",
            param="layers",
        )
    return tuple(evenly_spaced(layers, count))


def narrower(
    teacher: "PreTrainedModel", width: float, windows: "Tensor", progress: Progress
) -> "PreTrainedModel":
    """Return a student with this share of the teacher's MLP channels: those that matter most.

    Args:
        windows: text that the channels are judged on, int64 `[n, length]`.
    """
    student: PreTrainedModel = narrow_mlp(copy.deepcopy(teacher), windows, 1 - width, progress)
    return student


def from_checkpoint(path: Path, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """Load a smaller checkpoint whose tokenizer is the teacher's.

    Raises:
        InvalidInput: there is no such checkpoint, or its tokenizer is another.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (path / "config.json").exists():
        raise InvalidInput(f"There is no checkpoint in {path}: no config.json.", param="student")
    require_same_tokenizer(tokenizer, AutoTokenizer.from_pretrained(path), path.name)
    student: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    return student


def require_same_tokenizer(
    teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase", name: str
) -> None:
    """Refuse a student that numbers its tokens in another way than the teacher.

    Tokens that were added to the student's are in nobody's way: the teacher does not say them.

    Raises:
        InvalidInput: a token of the teacher's has another number, or none.
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    moved = sum(ours.get(token) != number for token, number in theirs.items())
    if not moved:
        return
    raise InvalidInput(
        f"The student '{name}' has another tokenizer than the teacher: {len(ours)} tokens against "
        f"{len(theirs)}, and {moved} of the teacher's have another number or none. Soft labels "
        "compare token by token, so both need the same tokenizer. Name a student of the same "
        "family, or cut one out of the teacher (layers).",
        param="student",
    )
