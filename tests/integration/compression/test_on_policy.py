"""On-policy distillation by trl: `make test-trl`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from turnmill.compression.calibration import linears_of  # noqa: E402
from turnmill.compression.distill.on_policy import OnPolicy, OnPolicyOptions  # noqa: E402
from turnmill.compression.step import Silent, State  # noqa: E402
from turnmill.compression.texts import Texts  # noqa: E402

pytestmark = [
    pytest.mark.needs("trl"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def make_state(
    tiny_llama_maker: Callable[..., Any], tiny_tokenizer: Any, tiny_texts: Texts, tmp_path: Path
) -> Callable[[], State]:
    """A teacher, and a student that is the teacher with noise, a few of its weights zero."""

    def make() -> State:
        student = tiny_llama_maker()
        random = torch.Generator().manual_seed(5)
        for linear in linears_of(student).values():
            linear.weight.data += 0.03 * torch.randn(linear.weight.shape, generator=random)
            linear.weight.data[:, :8] = 0
        return State(student, tiny_tokenizer, tiny_texts, tiny_llama_maker, tmp_path, seed=1)

    return make


def distance(student: Any, teacher: Any, ids: Any) -> float:
    """Return the mean KL(student ‖ teacher) of the next tokens, nats."""
    with torch.no_grad():
        mine, theirs = (each(input_ids=ids).logits.log_softmax(-1) for each in (student, teacher))
    return float((mine.exp() * (mine - theirs)).sum(-1).mean())


def test_the_student_comes_closer_to_its_teacher_and_stays_pruned(
    make_state: Callable[[], State], tiny_llama_maker: Callable[..., Any]
) -> None:
    state, teacher = make_state(), tiny_llama_maker()
    before = distance(state.model, teacher, state.texts.heldout)
    options = OnPolicyOptions(steps=30, prompt=8, reply=16, batch=8, learning_rate=3e-3)

    told = OnPolicy()(state, options, Silent())

    assert told["steps"] == 30
    assert distance(state.model, teacher, state.texts.heldout) < 0.8 * before
    assert not state.model.training
    for linear in linears_of(state.model).values():
        assert not linear.weight[:, :8].any()
        assert linear.weight[:, 8:].all()


def test_a_step_that_begins_again_ends_with_the_same_weights(
    make_state: Callable[[], State],
) -> None:
    options = OnPolicyOptions(steps=2, prompt=8, reply=8, batch=2)
    first, second = make_state(), make_state()
    assert OnPolicy()(first, options, Silent()) == OnPolicy()(second, options, Silent())
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
