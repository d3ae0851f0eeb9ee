"""Losses of distillation: what the student is told is right, and what the teacher thinks of it.

All take logits `[..., classes]`, so that language models (`[batch, positions, vocabulary]`) and
sequence classifiers (`[batch, classes]`) share them, and return the mean over the leading
dimensions, in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

#: Below it, what rounding leaves of a difference from 1 no longer says how small a share is.
_SURE = 1e-3

#: A label that the hard loss ignores.
IGNORED = -100


def hard_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the student's logits `[..., classes]` and labels `[...]`."""
    return cross_entropy(student.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Return T² · KL(teacher ‖ student), both softened by the temperature T.

    Gradients of the softened loss shrink as 1/T²; the factor T² keeps the balance with the hard
    loss when T changes (Hinton, Vinyals and Dean 2015, section 2).
    """
    return temperature**2 * _divergence(_soft(teacher, temperature), _soft(student, temperature))


def reverse_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Return T² · KL(student ‖ teacher): it punishes what the teacher would not say.

    MiniLLM (Gu et al. 2023) uses it for students too small to cover all that the teacher says.
    """
    return temperature**2 * _divergence(_soft(student, temperature), _soft(teacher, temperature))


def jensen_shannon_loss(
    student: Tensor, teacher: Tensor, temperature: float = 2.0, beta: float = 0.5
) -> Tensor:
    """Return T² times the generalized Jensen-Shannon divergence (Agarwal et al. 2023, GKD).

    With M = β·teacher + (1 - β)·student it is β·KL(teacher ‖ M) + (1 - β)·KL(student ‖ M).
    """
    p, q = _soft(teacher, temperature), _soft(student, temperature)
    weights = torch.tensor([beta, 1 - beta], dtype=p.dtype, device=p.device).log()
    mixture = torch.logsumexp(torch.stack([p + weights[0], q + weights[1]]), dim=0)
    divergence = beta * _divergence(p, mixture) + (1 - beta) * _divergence(q, mixture)
    return temperature**2 * divergence


#: How the teacher's opinion may be compared, by the names that options use.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward": soft_loss,
    "reverse": reverse_loss,
    "jensen-shannon": jensen_shannon_loss,
}


def combined_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 0.5,
    temperature: float = 2.0,
    divergence: str = "forward",
) -> Tensor:
    """Return α · hard + (1 - α) · soft loss, the mixture that trains a student."""
    soft = DIVERGENCES[divergence](student, teacher, temperature)
    return alpha * hard_loss(student, labels) + (1 - alpha) * soft


@dataclass(frozen=True)
class TopProbabilities:
    """A teacher's softened distributions, cut to the likeliest classes and the sum of the others.

    Attributes:
        values: log-probabilities at the temperature of the soft loss, float `[..., k]`.
        indices: the classes they belong to, int64 `[..., k]`.
        rest: log of the probability of all other classes together, float `[...]`; -inf if none.
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


def top_probabilities(logits: Tensor, k: int, temperature: float) -> TopProbabilities:
    """Keep the k likeliest classes of `softmax(logits / temperature)` and the sum of the others."""
    scaled = logits / temperature
    total = torch.logsumexp(scaled, dim=-1, keepdim=True)
    values, indices = scaled.topk(k, dim=-1)
    rest = torch.logsumexp(scaled.scatter(-1, indices, -torch.inf), dim=-1, keepdim=True)
    return TopProbabilities(values - total, indices, (rest - total).squeeze(-1))


def hard_and_soft_loss(
    student: Tensor, teacher: TopProbabilities, labels: Tensor, alpha: float, temperature: float
) -> Tensor:
    """Return α · hard + (1 - α) · soft loss, the teacher's unlikely classes merged into one.

    The soft loss is a lower bound of `soft_loss`, and equals it when every class was kept. No
    label is ignored. A vocabulary is large and memory slow: at a temperature of 1 one pass over
    the classes serves both losses, so that a step costs little more than one of hard labels.
    """
    total = torch.logsumexp(student, dim=-1)
    hard = (total - student.gather(-1, labels.unsqueeze(-1)).squeeze(-1)).mean()
    if temperature != 1:
        total = torch.logsumexp(student / temperature, dim=-1)
    picked = student.gather(-1, teacher.indices) / temperature - total.unsqueeze(-1)
    named = (teacher.values.exp() * (teacher.values - picked)).sum(-1)
    # 0 · log 0 = 0: no class may be left over.
    is_rest = teacher.rest > -torch.inf
    rest = torch.where(is_rest, teacher.rest, 0.0)
    q_share = 1 - picked.exp().sum(-1)
    q_rest = q_share.clamp_min(_SURE).log()
    is_sure = is_rest & (q_share < _SURE)
    if is_sure.any():
        left = (student[is_sure] / temperature).scatter(-1, teacher.indices[is_sure], -torch.inf)
        exact = torch.logsumexp(left, dim=-1) - total[is_sure]
        q_rest = q_rest.masked_scatter(is_sure, exact)
    others = torch.where(is_rest, rest.exp() * (rest - q_rest), 0.0)
    return alpha * hard + (1 - alpha) * temperature**2 * (named + others).mean()


def _soft(logits: Tensor, temperature: float) -> Tensor:
    return log_softmax(logits / temperature, dim=-1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean of KL(p ‖ q), both given as logarithms."""
    return kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
