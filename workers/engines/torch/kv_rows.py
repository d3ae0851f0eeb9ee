"""The KV cache of a batch: one row a turn, written in place.

Row `i` holds turn `i`'s keys and values from column 0 on. Rows differ in length, and what lies
beyond a row's length is masked, so a turn joins and leaves without a copy of its neighbours'
rows. Buffers grow as they are needed and are never shrunk while they are in use.
"""

from typing import TYPE_CHECKING, Any

import structlog
from transformers.cache_utils import Cache, CacheLayerMixin

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = structlog.get_logger(__name__)

#: Columns are added in steps, so that a growing turn seldom moves the batch.
COLUMN_STEP = 256

#: For each layer the keys and the values of one turn, [heads, columns, head size]. There may be
#: more columns than the turn has tokens.
RowStates = list[tuple[Tensor, Tensor]]


class KVRows(Cache):  # type: ignore[misc]
    """What a transformers model takes as `past_key_values`.

    Before a forward pass `aim` says which rows and columns the pass writes.
    """

    def __init__(self, layer_count: int) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(layer_count)])
        self.first_row = 0
        #: [rows], on the model's device: where each row's first new column is.
        self.starts: Any = None
        #: Columns that attention looks at.
        self.width = 0

    @property
    def row_count(self) -> int:
        """Rows with allocated memory."""
        keys = self.layers[0].keys
        return 0 if keys is None else len(keys)

    @property
    def column_count(self) -> int:
        """Allocated columns: the tokens that fit into each row."""
        keys = self.layers[0].keys
        return 0 if keys is None else int(keys.shape[2])

    def aim(self, first_row: int, starts: Tensor, width: int) -> None:
        self.first_row, self.starts, self.width = first_row, starts, width

    def move(self, source: int, target: int, length: int) -> None:
        """Give a turn another row; the old content of that row is lost."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[target, :, :length] = buffer[source, :, :length]

    def copy_out(self, row: int, length: int) -> RowStates:
        """The first `length` columns of a row, as memory of its own."""
        return [
            (layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone())
            for layer in self.layers
        ]

    def detach(self) -> RowStates:
        """The only row, with the memory it is in. Afterwards no row has memory."""
        states = [(layer.keys[0], layer.values[0]) for layer in self.layers]
        self.release()
        return states

    def attach(self, states: RowStates, columns: int) -> None:
        """Use the memory of a detached row again, widened to `columns`. No turn may have a row."""
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.keys, layer.values = keys[None], values[None]
        self.widen(columns)

    def widen(self, columns: int) -> None:
        """Widen the only row to so many columns.

        Where they do not fit, it grows by a quarter at once: a conversation grows with each of its
        turns, and each time all of it is moved.
        """
        if columns > self.column_count:
            for layer in self.layers:
                layer.reserve(layer.keys, layer.values, 1, columns + columns // 4)

    def copy_in(self, row: int, states: RowStates, length: int, columns: int) -> None:
        """The first `length` tokens of `states` become the beginning of a row, which will soon
        have so many `columns`: to grow it a second time would move all of it.
        """
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.reserve(keys[None], values[None], row + 1, columns)
            layer.keys[row, :, :length] = keys[:, :length]
            layer.values[row, :, :length] = values[:, :length]

    def copy_within(self, source: int, target: int, length: int, columns: int) -> None:
        """As `move`, where the target may not have been allocated yet."""
        states = [(one.keys[source], one.values[source]) for one in self.layers]
        self.copy_in(target, states, length, columns)

    def release(self) -> None:
        """Free the memory. No turn may have a row."""
        for layer in self.layers:
            layer.keys = layer.values = None


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: [rows, heads, columns, head size]."""

    is_sliding = False

    def __init__(self, rows: KVRows) -> None:
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self._rows = rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """`reserve` does it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of one forward pass, [rows, heads, new_tokens, head_dim].
        Return the slices that attention reads.
        """
        aim = self._rows
        count, new = key_states.shape[0], key_states.shape[2]
        end = aim.first_row + count
        self.reserve(key_states, value_states, end, aim.width)
        rows = torch.arange(aim.first_row, end, device=key_states.device)[:, None]
        columns = aim.starts[:, None] + torch.arange(new, device=key_states.device)
        self.keys[rows, :, columns] = key_states.transpose(1, 2)
        self.values[rows, :, columns] = value_states.transpose(1, 2)
        window = (slice(aim.first_row, end), slice(None), slice(aim.width))
        return self.keys[window], self.values[window]

    def reserve(self, keys: Tensor, values: Tensor, rows: int, columns: int) -> None:
        """Allocate so many rows and columns for states of this shape."""
        self.keys = _grown(self.keys, keys, rows, columns)
        self.values = _grown(self.values, values, rows, columns)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows.width, 0

    def get_seq_length(self) -> int:
        return self._rows.width

    def get_max_length(self) -> int:
        return -1


def _grown(buffer: Tensor | None, states: Tensor, rows: int, columns: int) -> Tensor:
    have = (0, 0) if buffer is None else (buffer.shape[0], buffer.shape[2])
    if rows <= have[0] and columns <= have[1]:
        return buffer
    rows = max(have[0], 1 << (rows - 1).bit_length())
    columns = max(have[1], -(-columns // COLUMN_STEP) * COLUMN_STEP)
    # Zeros, because what is masked still takes part: nothing times NaN is NaN.
    grown = states.new_zeros(rows, states.shape[1], columns, states.shape[3])
    if buffer is not None:
        grown[: have[0], :, : have[1]] = buffer
    return grown


class Masks:
    """Build the attention masks of a forward pass, in the form that the model takes.

    Full attention sees a row up to the token itself, sliding attention the last
    `config.sliding_window` tokens of it.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        config = model.config.get_text_config()
        self._dtype = model.dtype
        window = getattr(config, "sliding_window", None)
        types = getattr(config, "layer_types", None) or [
            "sliding_attention" if window else "full_attention"
        ]
        self._windows: dict[str, int | None] = {
            kind: window if kind == "sliding_attention" else None for kind in types
        }

    def for_tokens(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """The 4D mask, or one for each type of layer, for tokens at `positions` [rows, new].

        Numbers to add rather than booleans, which torch would turn into such in each layer.
        """
        masks = {
            kind: self._mask(positions, width, window) for kind, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, positions: Tensor, width: int, window: int | None) -> Tensor:
        columns = torch.arange(width, device=positions.device)
        last = positions[:, None, :, None]
        visible = columns <= last
        if window:
            visible &= columns > last - window
        mask = torch.zeros(visible.shape, dtype=self._dtype, device=positions.device)
        return mask.masked_fill_(~visible, torch.finfo(self._dtype).min)


def works_in_rows(model: "PreTrainedModel") -> bool:
    """Test whether a batch of turns of different lengths yields what each yields alone.

    Architectures differ in how they use masks and positions, so only a trial tells.
    """
    rows, masks = KVRows(model.config.get_text_config().num_hidden_layers), Masks(model)
    prompts = [[5, 6, 7, 8, 9, 10], [10, 9, 8, 7]]
    try:
        with torch.inference_mode():
            for row, prompt in enumerate(prompts):
                forward(model, rows, masks, row, [prompt[:-1]], [0])
            starts = [len(prompt) - 1 for prompt in prompts]
            together = forward(model, rows, masks, 0, [each[-1:] for each in prompts], starts)
            alone = torch.cat([_alone(model, prompt) for prompt in prompts])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        log.warning("engine.trial_failed", error=f"{type(error).__name__}: {error}")
        return False
    # Rounding differs with the size of a batch; a wrong mask differs by far more.
    return bool((together.float() - alone).abs().mean() < 0.05 * alone.std())


def forward(
    model: "PreTrainedModel",
    rows: KVRows,
    masks: Masks,
    row: int,
    new: list[list[int]],
    starts: list[int],
) -> Tensor:
    """Run one forward pass over new tokens of neighbouring rows, the same number for each.

    `row` is the first of them, and `starts` the number of tokens that each row has already. Return
    the logits of each row's last token, [rows, vocabulary].
    """
    first = torch.tensor(starts, device=model.device)
    positions = first[:, None] + torch.arange(len(new[0]), device=model.device)
    width = max(starts) + len(new[0])
    rows.aim(row, first, width)
    ids = torch.tensor(new, device=model.device)
    output = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=masks.for_tokens(positions, width),
        past_key_values=rows,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _alone(model: "PreTrainedModel", prompt: list[int]) -> Tensor:
    ids = torch.tensor([prompt], device=model.device)
    return model(input_ids=ids, use_cache=False).logits[:, -1].float()
