"""How fast the machine's arithmetic lets any engine be that computes in these numbers."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnmill.infra.bench.measure import Run
from turnmill.infra.bench.peers.peers import load
from turnmill.schemas.settings import EngineSettings

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16")

#: Rows of the product that is timed, as of a long prompt; how often, and how long each time.
ROWS, TRIES, TRY_S = 1024, 5, 0.3


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Of a model's linear layers; attention and everything else come on top."""

    #: Operations a second in a plain product of matrices; the fastest of `DTYPES`.
    flops: float
    dtype: str
    #: Operations for a token of prompt or reply, and besides for one that is generated.
    token_flop: float
    head_flop: float

    def tokens_per_s(self, run: Run) -> float:
        """Tokens generated, if the chats of this run took nothing but their products."""
        computed = run.prompt_tokens - run.cached_tokens + run.tokens
        return run.tokens * self.flops / (computed * self.token_flop + run.tokens * self.head_flop)


def find(settings: EngineSettings) -> Ceiling:
    """Of this model on this machine, by torch."""
    import torch

    model, _ = load(settings)
    head = model.get_output_embeddings()
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    weights = [layer.weight for layer in layers if layer is not head]
    largest = max(weights, key=lambda weight: weight.numel())
    rates = {name: _rate(largest.to(getattr(torch, name))) for name in DTYPES}
    dtype = max(rates, key=lambda name: rates[name])
    return Ceiling(
        flops=rates[dtype],
        dtype=dtype,
        token_flop=2.0 * sum(weight.numel() for weight in weights),
        head_flop=2.0 * head.weight.numel(),
    )


def _rate(weight: "torch.Tensor") -> float:
    """Operations a second, in the best of some tries."""
    import torch

    rows = torch.ones(ROWS, weight.shape[1], dtype=weight.dtype, device=weight.device)
    product = torch.empty(ROWS, weight.shape[0], dtype=weight.dtype, device=weight.device)
    best, repeats = 0.0, 1
    with torch.inference_mode():
        for _ in range(TRIES):
            took_s = 0.0
            while took_s < TRY_S:
                started_at = time.perf_counter()
                for _ in range(repeats):
                    torch.mm(rows, weight.T, out=product)
                product[0, 0].item()  # a GPU is done by then
                took_s = time.perf_counter() - started_at
                best = max(best, 2.0 * ROWS * weight.numel() * repeats / took_s)
                repeats = repeats if took_s >= TRY_S else repeats * 2
    return best
