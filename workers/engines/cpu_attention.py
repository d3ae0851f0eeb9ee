"""Attention over a prompt on a CPU, for models whose query heads share keys and values.

Where there is a mask transformers first writes the shared heads out once for each query head (on
a GPU the faster kernels ask for that), which for a few new tokens after a long past takes longer
than what is computed with them. torch's kernel for CPUs reads shared heads where they are.
"""

from typing import Any

from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def share_heads() -> None:
    """For all models of this process that use torch's attention ("sdpa")."""
    AttentionInterface.register("sdpa", attend)


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any
) -> tuple[Any, None]:
    """As `sdpa_attention_forward`, which goes on doing all else, single tokens too.

    query: [rows, heads, new, head size]; key, value: [rows, shared heads, columns, head size];
    the result: [rows, new, heads, head size].
    """
    is_usual = attention_mask is not None and settings.get("position_bias") is None
    if query.shape[2] == 1 or not is_usual:
        result: tuple[Any, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return result
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=settings.get("scaling"),
        enable_gqa=True,
    )
    return output.transpose(1, 2).contiguous(), None
