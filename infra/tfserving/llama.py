"""Llama models in plain TensorFlow operations, for TensorFlow Serving.

RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864), grouped-query attention
(arXiv 2305.13245) and SwiGLU (arXiv 2002.05202), with the weights of a transformers checkpoint
(`LlamaForCausalLM`, `LlamaForSequenceClassification`) in 32 bits. In shapes: b turns, n prompt
tokens, s tokens that are looked at, t tokens that look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from turnmill.infra.tfserving.checkpoint import Checkpoint
from turnmill.infra.tfserving.signatures import BLOCK, UNSEEN, spec


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a checkpoint's config.json the computation needs."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    theta: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """Raises `ValueError` where the checkpoint is of a kind that is not computed here."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type") or rope.get("type") or "default"
        wants = (config.get("model_type"), config.get("hidden_act"), kind)
        if wants != ("llama", "silu", "default"):
            raise ValueError(f"not a llama with SiLU and plain rotary positions: {wants}")
        if config.get("attention_bias") or config.get("mlp_bias"):
            raise ValueError("its layers have biases")
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            epsilon=config["rms_norm_eps"],
            theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """Keys and values [b, s, kv heads, head size] and what their scores get added [b|1, t|1, s]."""

    keys: tf.Tensor
    values: tf.Tensor
    mask: tf.Tensor


@dataclass(frozen=True, slots=True)
class Past:
    """A prompt that was read: what all layers see of it, and its tokens [b]."""

    seen: Seen
    length: tf.Tensor


class Llama:
    """A `Writer`, and what classifies."""

    prompt = (spec("input_ids", None), spec("length"))

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._shape = Shape.of(checkpoint.config)
        self.weights = _arrange(checkpoint, self._shape)

    def begin(
        self, input_ids: tf.Tensor, length: tf.Tensor
    ) -> tuple[tf.Tensor, Past, tuple[tf.Tensor, tf.Tensor]]:
        state, keys, values = self._read(input_ids, length)
        padding = tf.range(tf.shape(input_ids)[1])[None] >= length[:, None]
        seen = Seen(keys, values, UNSEEN * tf.cast(padding, tf.float32)[:, None])
        empty = tf.zeros_like(keys[:, :, :1]) + tf.zeros([1, 1, BLOCK, 1, 1])
        return state, Past(seen, length), (empty, empty)

    def go_on(
        self, token: tf.Tensor, number: tf.Tensor, past: Past, own: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        unseen = UNSEEN * tf.cast(tf.range(BLOCK) >= number, tf.float32)[None, None]
        seen = Seen(*own, unseen)
        return self._step(token, past.length + number - 1, past.seen, seen, number - 1)

    def logits(self, state: tf.Tensor) -> tf.Tensor:
        head = "lm_head" if "lm_head" in self.weights else "embedding"
        return tf.matmul(state, self.weights[head], transpose_b=head == "embedding")

    def classify(self, input_ids: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        """Scores [b, labels]."""
        return tf.matmul(self._read(input_ids, length)[0], self.weights["score"])

    def _read(self, ids: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Prompts [b, n], padded at the end by anything, of `length` [b] tokens: the last token's
        state [b, hidden], and all keys and values [layers, b, n, kv heads, head size].
        """
        count = tf.shape(ids)[1]
        mask = UNSEEN * (1.0 - tf.linalg.band_part(tf.ones([1, count, count]), -1, 0))
        state, keys, values = tf.gather(self.weights["embedding"], ids), [], []
        for layer in range(self._shape.layers):
            q, k, v = self._heads(layer, state, tf.range(count)[None])
            state = self._add(layer, state, q, [Seen(k, v, mask)])
            keys.append(k)
            values.append(v)
        return self._last(state, length - 1), tf.stack(keys), tf.stack(values)

    def _step(
        self, token: tf.Tensor, position: tf.Tensor, past: Seen, own: Seen, slot: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
        """One more token [b] at `position` [b], after the prompt `past` and the reply `own`, whose
        `slot` it takes: state [b, hidden], and own keys and values [layers, b, s, …].
        """
        state, keys, values = tf.gather(self.weights["embedding"], token[:, None]), [], []
        is_slot = (tf.range(tf.shape(own.keys)[2]) == slot)[None, :, None, None]
        for layer in range(self._shape.layers):
            q, k, v = self._heads(layer, state, position[:, None])
            keys.append(tf.where(is_slot, k, own.keys[layer]))
            values.append(tf.where(is_slot, v, own.values[layer]))
            seen = [
                Seen(past.keys[layer], past.values[layer], past.mask),
                Seen(keys[-1], values[-1], own.mask),
            ]
            state = self._add(layer, state, q, seen)
        state = self._last(state, tf.zeros_like(position))
        return state, (tf.stack(keys), tf.stack(values))

    def _last(self, state: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        return self._norm("norm", tf.gather(state, index, axis=1, batch_dims=1))

    def _heads(
        self, layer: int, state: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        shape = self._shape
        sizes = [shape.heads, shape.kv_heads, shape.kv_heads]
        flat = tf.matmul(self._norm(f"{layer}.before", state), self.weights[f"{layer}.qkv"])
        parts = tf.split(flat, [count * shape.head_size for count in sizes], axis=-1)
        q, k, v = (
            tf.reshape(part, [*tf.unstack(tf.shape(part)[:2]), count, shape.head_size])
            for part, count in zip(parts, sizes, strict=True)
        )
        return self._rotate(q, positions), self._rotate(k, positions), v

    def _rotate(self, x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Of each head the first half and the second half are the two parts of the pairs."""
        half = self._shape.head_size // 2
        frequencies = self._shape.theta ** (-tf.range(half, dtype=tf.float32) / half)
        angles = tf.cast(positions, tf.float32)[..., None, None] * frequencies
        cos, sin = tf.cos(angles), tf.sin(angles)
        first, second = x[..., :half], x[..., half:]
        return tf.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _add(self, layer: int, state: tf.Tensor, q: tf.Tensor, seen: Sequence[Seen]) -> tf.Tensor:
        """The state after the layer: what it looks up, and what it makes of that, added to it."""
        state += tf.matmul(self._attend(q, seen), self.weights[f"{layer}.out"])
        mixed = tf.matmul(self._norm(f"{layer}.between", state), self.weights[f"{layer}.gate_up"])
        gate, up = tf.split(mixed, 2, axis=-1)
        return state + tf.matmul(tf.nn.silu(gate) * up, self.weights[f"{layer}.down"])

    def _attend(self, q: tf.Tensor, seen: Sequence[Seen]) -> tf.Tensor:
        shape = self._shape
        turns, tokens = tf.unstack(tf.shape(q)[:2])
        grouped = [turns, tokens, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_size]
        q = tf.reshape(q, grouped) * shape.head_size**-0.5
        scores = [
            tf.einsum("btkgd,bskd->bkgts", q, each.keys) + each.mask[:, None, None] for each in seen
        ]
        shares = tf.split(
            tf.nn.softmax(tf.concat(scores, axis=-1)),
            [tf.shape(each.keys)[1] for each in seen],
            axis=-1,
        )
        looked_up = [
            tf.einsum("bkgts,bskd->btkgd", share, each.values)
            for share, each in zip(shares, seen, strict=True)
        ]
        return tf.reshape(tf.add_n(looked_up), [turns, tokens, shape.heads * shape.head_size])

    def _norm(self, name: str, x: tf.Tensor) -> tf.Tensor:
        mean = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(mean + self._shape.epsilon) * self.weights[f"{name}"]


def _arrange(checkpoint: Checkpoint, shape: Shape) -> dict[str, tf.Variable]:
    """tf.Variables by our names."""
    matrix, vector = checkpoint.matrix, checkpoint.vector
    weights = {"embedding": vector("model.embed_tokens"), "norm": vector("model.norm")}
    weights |= {head: matrix(head) for head in ("lm_head", "score") if checkpoint.has(head)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        weights |= {
            f"{layer}.before": vector(f"{name}.input_layernorm"),
            f"{layer}.qkv": matrix(*(f"{name}.self_attn.{part}_proj" for part in "qkv")),
            f"{layer}.out": matrix(f"{name}.self_attn.o_proj"),
            f"{layer}.between": vector(f"{name}.post_attention_layernorm"),
            f"{layer}.gate_up": matrix(f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"),
            f"{layer}.down": matrix(f"{name}.mlp.down_proj"),
        }
    return weights
