"""What an exported model can be asked for: `generate` and `classify`, token ids in and out.

Both take a batch, so that TensorFlow Serving can put turns together that come at the same time; it
pads shorter prompts at the end with anything, and `length` says where each ends.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tensorflow as tf

#: Tokens of a reply that one call generates, at most. A reader sees a reply in such pieces, and
#: each piece computes the prompt again: fewer make a livelier stream, more a cheaper reply.
BLOCK = 8

#: What a mask adds to the score of a token that must not be seen.
UNSEEN = -1e9

#: Where a turn's reply has ended before that of its neighbours.
NOTHING = -1


def spec(name: str, *shape: int | None, dtype: tf.DType = tf.int32) -> tf.TensorSpec:
    """An input for a batch of turns."""
    return tf.TensorSpec([None, *shape], dtype, name=name)


SAMPLING = (
    spec("limit"),
    spec("temperature", dtype=tf.float32),
    spec("top_p", dtype=tf.float32),
    spec("seed", 2),
)


class Writer(Protocol):
    """A model that writes token after token."""

    @property
    def prompt(self) -> Sequence[tf.TensorSpec]:
        """What it reads before it writes: inputs with names."""
        ...

    @property
    def begin(self) -> Callable[..., tuple[tf.Tensor, Any, Any]]:
        """A function of these inputs: the last token's state [b, hidden]; what stays as it is while
        the block is written; and a nest of tensors that it fills, with room for `BLOCK` tokens.
        """
        ...

    def go_on(
        self, token: tf.Tensor, number: tf.Tensor, past: Any, own: Any
    ) -> tuple[tf.Tensor, Any]:
        """After one more token [b], the block's `number`th: state [b, hidden], and the nest."""
        ...

    def logits(self, state: tf.Tensor) -> tf.Tensor:
        """[b, vocabulary] of states [b, hidden]."""
        ...


def generating(writer: Writer, end_ids: Sequence[int]) -> "tf.types.experimental.ConcreteFunction":
    """A signature: the next tokens of each turn, `BLOCK` at most.

    In: the writer's prompt; limit [b] int32; temperature (0 is greedy), top_p [b] float32; seed
    [b, 2] int32. Out: output_ids [b, m] int32 with each turn's end token included, and `NOTHING`
    after a turn's end.
    """

    def generate(
        limit: tf.Tensor,
        temperature: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
        **prompt: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        def pick(state: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
            numbers = tf.stack([seed[:, 0], seed[:, 1] + number], 1)
            return _pick(writer.logits(state), temperature, top_p, numbers)

        def is_over(token: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
            is_end = tf.reduce_any(token[:, None] == tf.constant([*end_ids, NOTHING]), axis=1)
            return is_end | (number >= limit)

        def goes_on(number: tf.Tensor, token: tf.Tensor, *_: object) -> tf.Tensor:
            return (number < BLOCK) & ~tf.reduce_all(is_over(token, number))

        def add_token(
            number: tf.Tensor, token: tf.Tensor, ids: tf.Tensor, own: Any
        ) -> tuple[Any, ...]:
            state, own = writer.go_on(tf.maximum(token, 0), number, past, own)
            after = tf.where(is_over(token, number), NOTHING, pick(state, number))
            ids = tf.where((tf.range(BLOCK) == number)[None], after[:, None], ids)
            return number + 1, after, ids, own

        state, past, own = writer.begin(**prompt)
        first = pick(state, 0)
        ids = tf.concat([first[:, None], tf.fill([tf.shape(first)[0], BLOCK - 1], NOTHING)], 1)
        count, _, ids, _ = tf.while_loop(goes_on, add_token, (1, first, ids, own))
        return {"output_ids": ids[:, :count]}

    return _signature(generate, [*writer.prompt, *SAMPLING])


def classifying(
    classify: Callable[..., tf.Tensor], prompt: Sequence[tf.TensorSpec]
) -> "tf.types.experimental.ConcreteFunction":
    """A signature: a prompt in, scores [b, labels] float32 out."""
    return _signature(lambda **given: {"scores": classify(**given)}, prompt)


def _signature(
    function: Callable[..., dict[str, tf.Tensor]], inputs: Sequence[tf.TensorSpec]
) -> "tf.types.experimental.ConcreteFunction":
    named = {each.name: each for each in inputs}
    return tf.function(function, autograph=False).get_concrete_function(**named)


def _pick(
    logits: tf.Tensor, temperature: tf.Tensor, top_p: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    greedy = tf.argmax(logits, axis=-1, output_type=tf.int32)
    is_drawn = temperature > 0
    return tf.cond(
        tf.reduce_any(is_drawn),
        lambda: tf.where(is_drawn, _draw(logits, temperature, top_p, seed), greedy),
        lambda: greedy,
    )


def _draw(
    logits: tf.Tensor, temperature: tf.Tensor, top_p: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Tokens [b] out of each turn's nucleus (arXiv 1904.09751), each with its own random numbers,
    whatever it is batched with.
    """
    probabilities = tf.nn.softmax(logits / tf.maximum(temperature, 1e-6)[:, None])
    ordered, order = tf.math.top_k(probabilities, tf.shape(probabilities)[1])
    # The token that crosses the line still belongs to the nucleus.
    is_in = tf.cumsum(ordered, axis=1, exclusive=True) < top_p[:, None]
    up_to = tf.cumsum(tf.where(is_in, ordered, 0.0), axis=1)
    chance = tf.map_fn(
        lambda one: tf.random.stateless_uniform([], one), seed, fn_output_signature=tf.float32
    )
    before = tf.reduce_sum(
        tf.cast((up_to <= (chance * up_to[:, -1])[:, None]) & is_in, tf.int32), axis=1
    )
    size = tf.reduce_sum(tf.cast(is_in, tf.int32), axis=1)
    return tf.gather(order, tf.minimum(before, size - 1), batch_dims=1)
