"""How long to wait before trying again."""

import random


def backoff_s(tries: int, *, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Exponential backoff with full jitter, in seconds, after `tries` tries (from 1).

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(tries - 1, 32))
    return random.uniform(ceiling / 2, ceiling)
