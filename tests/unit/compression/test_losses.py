"""The losses of distillation against closed forms, and their gradients against differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from turnmill.compression.distill.losses import (
    DIVERGENCES,
    IGNORED,
    TopProbabilities,
    combined_loss,
    hard_and_soft_loss,
    hard_loss,
    jensen_shannon_loss,
    reverse_loss,
    soft_loss,
    top_probabilities,
)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = logits(3, 5, 7, seed=1), logits(3, 5, 7, seed=2)
LABELS = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(3))


def from_top(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_from(student, top_probabilities(teacher, 3, temperature), temperature)


def soft_from(student: Tensor, top: TopProbabilities, temperature: float) -> Tensor:
    labels = torch.zeros(student.shape[:-1], dtype=torch.int64)
    return hard_and_soft_loss(student, top, labels, 0.0, temperature)


def test_the_hard_loss_is_the_mean_negative_log_probability_of_the_labels() -> None:
    expected = -STUDENT.softmax(-1).gather(-1, LABELS[..., None]).log().mean()
    assert torch.allclose(hard_loss(STUDENT, LABELS), expected)


def test_labels_marked_as_ignored_do_not_count() -> None:
    labels = LABELS.clone()
    labels[:, 2:] = IGNORED
    assert torch.allclose(hard_loss(STUDENT, labels), hard_loss(STUDENT[:, :2], LABELS[:, :2]))


def test_the_soft_loss_of_two_classes_is_the_textbook_formula() -> None:
    temperature = 3.0
    student, teacher = torch.tensor([[[0.3, -0.8], [1.2, 0.4]]]).double()[0].split(1)
    p = 1 / (1 + math.exp((0.4 - 1.2) / temperature))
    q = 1 / (1 + math.exp((-0.8 - 0.3) / temperature))
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(soft_loss(student, teacher, temperature)) == pytest.approx(9 * divergence)
    assert float(reverse_loss(teacher, student, temperature)) == pytest.approx(9 * divergence)


@pytest.mark.parametrize("loss", [soft_loss, reverse_loss, jensen_shannon_loss, from_top])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergences_are_zero_for_equal_logits_and_positive_otherwise(
    loss: Callable[..., Tensor], temperature: float
) -> None:
    assert float(loss(TEACHER, TEACHER, temperature)) == pytest.approx(0, abs=1e-12)
    assert float(loss(STUDENT, TEACHER, temperature)) > 0.01
    # Probabilities do not change when a constant is added to all logits.
    assert torch.allclose(
        loss(STUDENT + 5, TEACHER - 2, temperature), loss(STUDENT, TEACHER, temperature)
    )


def test_temperature_leaves_the_size_of_gradients_as_it_is() -> None:
    """At high temperatures the gradient tends to (student - teacher) / classes: Hinton's T²."""
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_loss(student, TEACHER, 1e4), student)
    difference = STUDENT - TEACHER
    expected = (difference - difference.mean(-1, keepdim=True)) / 7 / 15
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_jensen_shannon_is_symmetric_at_one_half_and_bounded_by_log_two() -> None:
    there = jensen_shannon_loss(STUDENT, TEACHER, 1.0)
    assert torch.allclose(there, jensen_shannon_loss(TEACHER, STUDENT, 1.0))
    assert float(jensen_shannon_loss(100 * STUDENT, 100 * TEACHER, 1.0)) <= math.log(2)


def test_the_combined_loss_is_the_weighted_sum_of_both() -> None:
    found = combined_loss(STUDENT, TEACHER, LABELS, alpha=0.3, temperature=2.5)
    expected = 0.3 * hard_loss(STUDENT, LABELS) + 0.7 * soft_loss(STUDENT, TEACHER, 2.5)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("loss", [soft_loss, reverse_loss, jensen_shannon_loss, from_top])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_gradients_agree_with_finite_differences(
    loss: Callable[..., Tensor], temperature: float
) -> None:
    student = logits(2, 5, seed=4).requires_grad_()
    teacher = logits(2, 5, seed=5)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, temperature), student)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_of_the_combined_loss_agree_with_finite_differences(divergence: str) -> None:
    student = logits(2, 5, seed=4).requires_grad_()
    labels = torch.tensor([1, IGNORED])
    teacher = logits(2, 5, seed=5)
    assert torch.autograd.gradcheck(
        lambda s: combined_loss(s, teacher, labels, divergence=divergence), student
    )


def test_all_classes_kept_give_the_whole_soft_loss() -> None:
    top = top_probabilities(TEACHER, 7, 2.0)
    assert torch.isneginf(top.rest).all()
    student = STUDENT.clone().requires_grad_()
    found = soft_from(student, top, 2.0)
    assert torch.allclose(found, soft_loss(STUDENT, TEACHER, 2.0))
    (gradient,) = torch.autograd.grad(found, student)
    assert gradient.isfinite().all()


def test_fewer_classes_kept_bound_the_soft_loss_from_below_ever_more_loosely() -> None:
    found = [
        float(soft_from(STUDENT, top_probabilities(TEACHER, k, 2.0), 2.0)) for k in (1, 3, 5, 6)
    ]
    assert found == sorted(found)
    # Six of seven classes and the sum of the seventh are all seven.
    assert found[-1] == pytest.approx(float(soft_loss(STUDENT, TEACHER, 2.0)))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kept_probabilities_and_labels_give_the_weighted_sum_of_both(temperature: float) -> None:
    top = top_probabilities(TEACHER, 7, temperature)
    found = hard_and_soft_loss(STUDENT, top, LABELS, 0.3, temperature)
    assert torch.allclose(found, combined_loss(STUDENT, TEACHER, LABELS, 0.3, temperature))


@pytest.mark.parametrize("gap", [0.0, 8.0, 16.0, 40.0])
def test_a_sure_student_is_pushed_back_as_hard_as_by_all_classes(gap: float) -> None:
    """Of a student that leaves next to nothing to the classes outside the teacher's likeliest."""
    top = top_probabilities(TEACHER, 3, 2.0)
    sure = STUDENT.scatter_add(-1, top.indices, torch.full(top.indices.shape, gap).double())
    labels = torch.zeros(3, 5, dtype=torch.int64)

    def exact(student: Tensor) -> Tensor:
        q = torch.log_softmax(student / 2, dim=-1)
        rest = torch.logsumexp(q.scatter(-1, top.indices, -torch.inf), dim=-1)
        named = (top.values.exp() * (top.values - q.gather(-1, top.indices))).sum(-1)
        return 4 * (named + top.rest.exp() * (top.rest - rest)).mean()

    found, expected = (sure.float().requires_grad_(), sure.requires_grad_())
    low = TopProbabilities(top.values.float(), top.indices, top.rest.float())
    loss = hard_and_soft_loss(found, low, labels, 0.0, 2.0)
    (gradient,) = torch.autograd.grad(loss, found)
    (reference,) = torch.autograd.grad(exact(expected), expected)
    assert torch.allclose(loss.double(), exact(expected), rtol=1e-4)
    assert torch.allclose(gradient.double(), reference, atol=2e-4)


def test_kept_probabilities_and_the_rest_sum_to_one() -> None:
    top = top_probabilities(TEACHER, 3, 2.0)
    assert torch.allclose(top.values.exp().sum(-1) + top.rest.exp(), torch.ones(3, 5).double())
