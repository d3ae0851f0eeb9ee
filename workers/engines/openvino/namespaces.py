"""Namespaces in OpenVINO's prefix cache, which has no salt.

The cache finds a block of 32 tokens by the hash of all ids up to its end. Gather, which looks up
the embeddings, counts negative indices from the end of its table (Gather-8,
https://docs.openvino.ai/2026/documentation/openvino-ir-format/operation-sets/operation-specs/movement/gather-8.html).
So each token has a second id, `id - rows`, that the model computes the same and the cache does not
know. The bits of a namespace's number choose between the two for the first tokens of a prompt.
"""

from collections.abc import Callable, Sequence

import structlog

log = structlog.get_logger(__name__)

#: Tokens that carry a bit of the number. Shorter prompts are in no whole block.
BITS = 32


class Namespaces:
    """Numbers for namespaces, and token ids that tell them apart."""

    def __init__(self, rows: int) -> None:
        """`rows` of the table of embeddings."""
        self._rows = rows
        #: The empty one is as if there were none.
        self._numbers = {"": 0}

    def ids(self, tokens: Sequence[int], namespace: str) -> list[int]:
        """The tokens as the cache is to know them in a namespace."""
        number = self._numbers.setdefault(namespace, len(self._numbers))
        ids = list(tokens)
        for position in range(min(BITS, len(ids))):
            if number >> position & 1:
                ids[position] -= self._rows
        return ids


def have_second_ids(rows: int, generate: Callable[[list[int]], list[int]]) -> bool:
    """Whether a model says the same to second ids; `generate` returns a few tokens."""
    ids = [index * rows // BITS for index in range(BITS)] * 2
    try:
        return generate([each - rows for each in ids]) == generate(ids)
    except Exception as error:
        log.warning("engine.no_second_ids", error=type(error).__name__)
        return False
