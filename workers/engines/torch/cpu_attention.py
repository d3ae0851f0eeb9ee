"""Attention over a prompt on a CPU, for models whose query heads share keys and values.

Where there is a mask transformers first writes the shared heads out once for each query head (on
a GPU the faster kernels ask for that), which for a few new tokens after a long past takes longer
than what is computed with them. torch's kernel for CPUs reads shared heads where they are.

In bfloat16 that kernel can be helped, for a few new tokens of one turn after a long past, as a
conversation's next turn has them. On a CPU with AMX it lays shared heads out for each query head
that shares them; of these, some heads' tokens make one head's. On a CPU without AMX it takes half
as long again as two products and a softmax.
"""

from typing import Any

from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from turnmill.workers.vendor.torch import has_amx

#: New tokens for which the products' scores stay in the processor's cache, at most. With AMX there
#: is nothing to gain from as many on.
FEW_TOKENS = 128
#: Columns from which the products take less time than the kernel.
MANY_COLUMNS = 256

HAS_AMX = has_amx()


def share_heads() -> None:
    """For all models of this process that use torch's attention ("sdpa")."""
    AttentionInterface.register("sdpa", attend)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward`, which still serves single tokens and unusual arguments.

    query: [rows, heads, new, head size]; key, value: [rows, shared heads, columns, head size];
    the result: [rows, new, heads, head size].
    """
    is_usual = attention_mask is not None and settings.get("position_bias") is None
    if query.shape[2] == 1 or not is_usual:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return result
    is_few = len(query) == 1 and query.shape[2] <= FEW_TOKENS
    if query.dtype == torch.bfloat16 and is_few and key.shape[2] >= MANY_COLUMNS:
        few = _by_shared_heads if HAS_AMX else _by_products
        return few(query, key, value, attention_mask, settings.get("scaling")), None
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=settings.get("scaling"),
        enable_gqa=True,
    )
    return output.transpose(1, 2).contiguous(), None


def _by_shared_heads(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None
) -> Tensor:
    """For one row; shapes as in `attend`. The tokens of all heads that share one are that one's."""
    heads, new, size = query.shape[1:]
    shared = key.shape[1]
    output = scaled_dot_product_attention(
        query.reshape(1, shared, -1, size),
        key,
        value,
        attn_mask=mask.repeat(1, 1, heads // shared, 1),
        scale=scale,
    )
    return output.view(1, heads, new, size).transpose(1, 2).contiguous()


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None
) -> Tensor:
    """For one row; shapes as in `attend`. Scores are rounded, as in transformers' own ("eager")."""
    heads, new, size = query.shape[1:]
    shared, columns = key.shape[1:3]
    scaled = (query[0] * (scale or size**-0.5)).reshape(shared, -1, size)
    scores = torch.bmm(scaled, key[0].transpose(1, 2)).view(shared, -1, new, columns)
    # In place: fresh memory of this size costs more than what is computed in it.
    weights = torch.softmax(scores.add_(mask[0]), -1, out=scores).view(shared, -1, columns)
    output = torch.bmm(weights, value[0]).view(heads, new, size)
    return output.transpose(0, 1).contiguous()[None]
