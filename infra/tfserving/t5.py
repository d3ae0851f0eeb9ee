"""T5 models (arXiv 1910.10683) in plain TensorFlow operations, for TensorFlow Serving.

The first T5 and T5 v1.1 (FLAN-T5), with the weights of a transformers checkpoint
(`T5ForConditionalGeneration`) in 32 bits. In shapes: b turns, n prompt tokens, t tokens that look,
s places for tokens that are looked at.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from turnmill.infra.tfserving.checkpoint import Checkpoint
from turnmill.infra.tfserving.signatures import BLOCK, UNSEEN, spec

#: By `feed_forward_proj`: what is done to the first of these products; a second one gates it.
FEED_FORWARD: dict[str, tuple[Callable[[tf.Tensor], tf.Tensor], list[str]]] = {
    "relu": (tf.nn.relu, ["wi"]),
    "gated-gelu": (lambda x: tf.nn.gelu(x, approximate=True), ["wi_0", "wi_1"]),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a checkpoint's config.json the computation needs."""

    layers: int
    decoder_layers: int
    heads: int
    head_size: int
    epsilon: float
    feed_forward: str
    #: Distances between tokens that are told apart: in how many kinds, and up to which.
    buckets: int
    furthest: int
    #: What the last state is multiplied by.
    scale: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """Raises `ValueError` where the checkpoint is of a kind that is not computed here."""
        feed_forward = config.get("feed_forward_proj", "relu")
        if feed_forward not in FEED_FORWARD:
            raise ValueError(f"its layers are {feed_forward}, not {' or '.join(FEED_FORWARD)}")
        # The first T5 has one table for both ends and scales; v1.1 has two and does not.
        is_tied = config.get("tie_word_embeddings") is not False
        return cls(
            layers=config["num_layers"],
            decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
            heads=config["num_heads"],
            head_size=config["d_kv"],
            epsilon=config.get("layer_norm_epsilon", 1e-6),
            feed_forward=feed_forward,
            buckets=config.get("relative_attention_num_buckets", 32),
            furthest=config.get("relative_attention_max_distance", 128),
            scale=config["d_model"] ** -0.5 if config.get("scale_decoder_outputs", is_tied) else 1,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one layer: keys and values [b, s, heads, head size], and what their scores get added
    [b|1, heads|1, t|1, s].
    """

    keys: tf.Tensor
    values: tf.Tensor
    bias: tf.Tensor


#: The keys and the values of each layer that a block fills.
Own = list[tuple[tf.Tensor, tf.Tensor]]


@dataclass(frozen=True, slots=True)
class Past:
    """The prompt as each layer of the decoder sees it, and how long the reply was [b]."""

    prompt: list[Seen]
    length: tf.Tensor


class T5:
    """A `Writer`: the encoder reads the prompt, the decoder goes on with the reply."""

    prompt = (
        spec("input_ids", None),
        spec("length"),
        spec("decoder_input_ids", None),
        spec("decoder_length"),
    )

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._shape = Shape.of(checkpoint.config)
        self.weights = _arrange(checkpoint, self._shape)

    def begin(
        self,
        input_ids: tf.Tensor,
        length: tf.Tensor,
        decoder_input_ids: tf.Tensor,
        decoder_length: tf.Tensor,
    ) -> tuple[tf.Tensor, Past, Own]:
        read, count = self._read(input_ids, length), tf.shape(decoder_input_ids)[1]
        past = Past(read, decoder_length)
        room = tf.zeros_like(read[0].keys[:, :1]) + tf.zeros([1, count + BLOCK, 1, 1])
        empty = [(room, room)] * self._shape.decoder_layers
        state, own = self._write(decoder_input_ids, tf.range(count)[None], past, empty)
        return tf.gather(state, decoder_length - 1, axis=1, batch_dims=1), past, own

    def go_on(
        self, token: tf.Tensor, number: tf.Tensor, past: Past, own: Own
    ) -> tuple[tf.Tensor, Own]:
        position = past.length + number - 1
        state, own = self._write(token[:, None], position[:, None], past, own)
        return state[:, 0], own

    def logits(self, state: tf.Tensor) -> tf.Tensor:
        head = "head" if "head" in self.weights else "embedding"
        state *= self._shape.scale
        return tf.matmul(state, self.weights[head], transpose_b=head == "embedding")

    def _read(self, ids: tf.Tensor, length: tf.Tensor) -> list[Seen]:
        """Prompts [b, n], padded at the end by anything, of `length` [b] tokens."""
        positions, state = tf.range(tf.shape(ids)[1]), tf.gather(self.weights["embedding"], ids)
        padding = UNSEEN * tf.cast(positions[None] >= length[:, None], tf.float32)[:, None, None]
        bias = padding + self._bias("encoder", positions[None], positions)
        for layer in range(self._shape.layers):
            name = f"encoder.{layer}"
            q, k, v = self._heads(f"{name}.qkv", self._norm(f"{name}.0", state))
            state += self._attend(f"{name}.out", q, Seen(k, v, bias))
            state += self._feed_forward(name, self._norm(f"{name}.1", state))
        state = self._norm("encoder", state)
        both = [
            self._heads(f"decoder.{layer}.prompt_kv", state)
            for layer in range(self._shape.decoder_layers)
        ]
        return [Seen(k, v, padding) for k, v in both]

    def _write(
        self, ids: tf.Tensor, positions: tf.Tensor, past: Past, own: Own
    ) -> tuple[tf.Tensor, Own]:
        """States [b, t, hidden] after tokens [b, t] at `positions` [b|1, t] of the reply, whose
        keys and values [b, s, …] of each layer take their places in `own`.
        """
        state, after = tf.gather(self.weights["embedding"], ids), []
        places = tf.range(tf.shape(own[0][0])[1])
        # Padding lies behind all that look, until a token takes its place.
        later = tf.cast(places > positions[..., None], tf.float32)[:, None]
        bias = UNSEEN * later + self._bias("decoder", positions, places)
        for layer, (keys, values) in enumerate(own):
            name = f"decoder.{layer}"
            q, k, v = self._heads(f"{name}.qkv", self._norm(f"{name}.0", state))
            after.append((_put(keys, k, positions), _put(values, v, positions)))
            state += self._attend(f"{name}.out", q, Seen(*after[-1], bias))
            (q,) = self._heads(f"{name}.prompt_q", self._norm(f"{name}.1", state))
            state += self._attend(f"{name}.prompt_out", q, past.prompt[layer])
            state += self._feed_forward(name, self._norm(f"{name}.2", state))
        return self._norm("decoder", state), after

    def _heads(self, name: str, state: tf.Tensor) -> list[tf.Tensor]:
        """As many of [b, t, heads, head size] as the matrix makes: queries, keys, values."""
        shape = self._shape
        flat = tf.matmul(state, self.weights[name])
        count = flat.shape[-1] // (shape.heads * shape.head_size)
        sizes = [*tf.unstack(tf.shape(flat)[:2]), shape.heads, shape.head_size]
        return [tf.reshape(part, sizes) for part in tf.split(flat, count, axis=-1)]

    def _attend(self, name: str, q: tf.Tensor, seen: Seen) -> tf.Tensor:
        """What the queries look up. T5's scores are not divided by the root of their size."""
        scores = tf.einsum("bthd,bshd->bhts", q, seen.keys) + seen.bias
        looked_up = tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), seen.values)
        width = self._shape.heads * self._shape.head_size
        flat = tf.reshape(looked_up, [*tf.unstack(tf.shape(q)[:2]), width])
        return tf.matmul(flat, self.weights[name])

    def _feed_forward(self, name: str, state: tf.Tensor) -> tf.Tensor:
        activate, parts = FEED_FORWARD[self._shape.feed_forward]
        first, *gates = (tf.matmul(state, self.weights[f"{name}.{part}"]) for part in parts)
        mixed = activate(first) * gates[0] if gates else activate(first)
        return tf.matmul(mixed, self.weights[f"{name}.wo"])

    def _bias(self, side: str, positions: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """For tokens at `positions` [b|1, t] that look at `places` [s]: [b|1, heads, t, s]."""
        furthest = self._shape.furthest
        distances = tf.clip_by_value(places - positions[..., None], -furthest, furthest)
        found = tf.gather(self.weights[f"{side}.bias"], distances + furthest)
        return tf.transpose(found, [0, 3, 1, 2])

    def _norm(self, name: str, x: tf.Tensor) -> tf.Tensor:
        mean = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(mean + self._shape.epsilon) * self.weights[f"{name}.norm"]


def buckets(shape: Shape, *, is_encoder: bool) -> list[int]:
    """The kind of each distance from `-furthest` to `furthest`: near ones each have their own, far
    ones share one the more, the further they are. A decoder does not look ahead.
    """
    kinds = shape.buckets // 2 if is_encoder else shape.buckets
    near = kinds // 2

    def kind(distance: int) -> int:
        ahead = kinds if is_encoder and distance > 0 else 0
        distance = abs(distance) if is_encoder else max(-distance, 0)
        if distance < near:
            return ahead + distance
        # In 32 bits, as in transformers: a border may lie on the other side in 64.
        log = np.log(np.float32(distance) / np.float32(near)) / np.float32(
            math.log(shape.furthest / near)
        )
        return ahead + min(kinds - 1, near + int(log * np.float32(kinds - near)))

    return [kind(distance) for distance in range(-shape.furthest, shape.furthest + 1)]


def _put(places: tf.Tensor, new: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """`places` [b, s, …] with `new` [b, t, …] at `positions` [b|1, t]."""
    is_at = tf.one_hot(positions, tf.shape(places)[1])
    moved = tf.einsum("bts,bthd->bshd", is_at + tf.zeros_like(new[:, :, 0, :1]), new)
    return tf.where(tf.reduce_any(is_at > 0, axis=1)[..., None, None], moved, places)


def _arrange(checkpoint: Checkpoint, shape: Shape) -> dict[str, tf.Variable]:
    """tf.Variables by our names."""
    if not checkpoint.is_a("T5ForConditionalGeneration"):
        raise ValueError("only T5ForConditionalGeneration writes")
    weights = {"embedding": checkpoint.vector("shared")}
    if checkpoint.has("lm_head"):
        weights["head"] = checkpoint.matrix("lm_head")
    for side, layers in (("encoder", shape.layers), ("decoder", shape.decoder_layers)):
        weights[f"{side}.norm"] = checkpoint.vector(f"{side}.final_layer_norm")
        table = checkpoint.vector(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias")
        kinds = buckets(shape, is_encoder=side == "encoder")
        weights[f"{side}.bias"] = tf.Variable(tf.gather(table, kinds), trainable=False)
        for layer in range(layers):
            weights |= _arrange_layer(checkpoint, shape, side, layer)
    return weights


def _arrange_layer(
    checkpoint: Checkpoint, shape: Shape, side: str, layer: int
) -> dict[str, tf.Variable]:
    source, name = f"{side}.block.{layer}.layer", f"{side}.{layer}"
    matrix, parts = checkpoint.matrix, 3 if side == "decoder" else 2
    weights = {
        f"{name}.{part}.norm": checkpoint.vector(f"{source}.{part}.layer_norm")
        for part in range(parts)
    }
    weights[f"{name}.qkv"] = matrix(*(f"{source}.0.SelfAttention.{part}" for part in "qkv"))
    weights[f"{name}.out"] = matrix(f"{source}.0.SelfAttention.o")
    if side == "decoder":
        across = f"{source}.1.EncDecAttention"
        weights[f"{name}.prompt_q"] = matrix(f"{across}.q")
        weights[f"{name}.prompt_kv"] = matrix(f"{across}.k", f"{across}.v")
        weights[f"{name}.prompt_out"] = matrix(f"{across}.o")
    for part in [*FEED_FORWARD[shape.feed_forward][1], "wo"]:
        weights[f"{name}.{part}"] = matrix(f"{source}.{parts - 1}.DenseReluDense.{part}")
    return weights
