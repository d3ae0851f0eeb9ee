"""Holds on transformers: its KV cache, its masks and its attention, as the torch engine uses them.

`KVRows` derives from `Cache`, `cpu_attention` calls transformers' own attention, and masks of four
dimensions are passed through the model as they are.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

READ_IN = {"transformers": "5.23.0"}
HOLDS = {
    "transformers.cache_utils:CacheLayerMixin": "ea84668d26e9",
    "transformers.cache_utils:Cache.__init__": "3682f89287ee",
    "transformers.cache_utils:Cache.update": "8087539f90f9",
    "transformers.cache_utils:Cache.get_seq_length": "45b82bf729f7",
    "transformers.cache_utils:Cache.get_mask_sizes": "19bbeb044fa3",
    "transformers.integrations.sdpa_attention:sdpa_attention_forward": "a030d39b9274",
    "transformers.masking_utils:_preprocess_mask_arguments": "e63dcd220bb4",
}


def is_stateful(model: "PreTrainedModel") -> bool:
    """Whether a model keeps a recurrent state instead of keys and values."""
    return bool(getattr(model, "_is_stateful", False))
