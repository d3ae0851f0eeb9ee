"""What a person sees of a batch, without a terminal and without a database."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from turnmill.producer.cli.views import batch_view
from turnmill.producer.cli.views.batch_view import (
    describe_progress,
    replies_table,
    shorten,
    watch,
)
from turnmill.schemas.batches import BatchFailures, BatchProgress, BatchResult, ResultError
from turnmill.schemas.errors import DatabaseUnavailable
from turnmill.schemas.turns import TurnState

START = datetime(2026, 1, 1, tzinfo=UTC)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)


def output(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def render(renderable: RenderableType) -> str:
    target = console()
    target.print(renderable)
    return output(target)


def at(completed: int, failed: int = 0, total: int = 40, tokens: int = 0) -> BatchProgress:
    states = {TurnState.COMPLETED: completed, TurnState.FAILED: failed}
    states[TurnState.QUEUED] = total - completed - failed
    return BatchProgress(total=total, states=states, completion_tokens=tokens)


def result(**values: Any) -> BatchResult:
    defaults = {"id": "a", "row": 1, "turn_id": "turn_1", "conversation_id": "conv_1", "seq": 1}
    return BatchResult.model_validate(
        defaults | {"state": "completed", "attempts": 1, "question": "Where?"} | values
    )


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_rate_and_time_left_are_said_once_they_are_known() -> None:
    assert describe_progress(at(10)) == "10/40 done, estimating the time left"
    known = {"turns_per_s": 2.0, "tokens_per_s": 1100.4}
    assert describe_progress(at(19, failed=1).model_copy(update=known)) == (
        "20/40 done, 1 failed, 2.0 turns/s, 1,100 tokens/s, 0:10 left"
    )
    assert describe_progress(at(40).model_copy(update=known)) == "40/40 done"


def test_log_gets_a_line_now_and_then_and_one_at_the_end() -> None:
    target, time = console(), Time()
    steps = iter([at(n) for n in range(41)])
    end = watch(lambda: next(steps), target, resume_command="x", clock=time.clock, sleep=time.sleep)
    lines = output(target).splitlines()
    assert end is not None and end.is_done
    assert lines[0].startswith("0/40 done")
    assert lines[1] == "20/40 done, estimating the time left"
    assert lines[-1] == "40/40 done"
    assert len(lines) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_a_batch_that_stands_still_says_why_and_what_helps(terminal: bool) -> None:
    target, time, asked = console(terminal=terminal), Time(), []

    def explain() -> str:
        asked.append(time.now)
        return "Its last turn is in lane batch, paused\n→ turnmill lanes resume batch"

    steps = iter([at(0)] * 60 + [at(40)])
    watch(
        lambda: next(steps), target, resume_command="x", explain=explain,
        clock=time.clock, sleep=time.sleep,
    )  # fmt: skip
    assert "→ turnmill lanes resume batch" in output(target)
    assert asked == pytest.approx([105.0, 110.0], abs=0.3), "now and then, not at each look"
    assert "lanes resume" not in output(target).rpartition("40/40 done")[2]


def test_a_batch_that_moves_is_not_asked_why() -> None:
    target, time = console(), Time()
    steps = iter([at(n // 10) for n in range(401)])
    watch(
        lambda: next(steps), target, resume_command="x", explain=lambda: "It stands.",
        clock=time.clock, sleep=time.sleep,
    )  # fmt: skip
    assert "It stands." not in output(target)


def test_terminal_gets_a_bar() -> None:
    target, time = console(terminal=True), Time()
    steps = iter([at(0), at(20, failed=1), at(39, failed=1)])
    watch(lambda: next(steps), target, resume_command="x", clock=time.clock, sleep=time.sleep)
    assert "━" * 20 in output(target)
    assert "40/40 done, 1 failed" in output(target)


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_says_how_to_go_on(terminal: bool) -> None:
    def interrupted() -> BatchProgress:
        raise KeyboardInterrupt

    target = console(terminal=terminal)
    assert watch(interrupted, target, resume_command="turnmill batch watch batch_1") is None
    assert "nothing is lost" in output(target)
    assert "turnmill batch watch batch_1" in output(target)


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_survives_a_database_that_is_away(terminal: bool) -> None:
    target, time = console(terminal=terminal), Time()
    steps = iter([DatabaseUnavailable("It is away."), at(1), DatabaseUnavailable("Gone."), at(40)])

    def read() -> BatchProgress:
        step = next(steps)
        if isinstance(step, Exception):
            raise step
        return step

    end = watch(read, target, resume_command="x", clock=time.clock, sleep=time.sleep)
    assert end is not None and end.is_done
    assert "It is away. Still watching." in output(target)


def test_slow_reads_are_spaced_out() -> None:
    time, sleeps = Time(), []
    steps = iter([at(0), at(40)])

    def read() -> BatchProgress:
        time.now += 2
        return next(steps)

    watch(read, console(), resume_command="x", clock=time.clock, sleep=sleeps.append)
    assert sleeps == [pytest.approx(20)]


def test_texts_are_shortened_by_their_width_and_cannot_harm() -> None:
    assert shorten("我的快递显示已签收，可是我没有收到。", 11).plain == "我的快递显…"
    assert cell_len(shorten("我的快递显示已签收", 11).plain) <= 11
    assert shorten("a\n\n  b\x1b[31mc\u202e", 60).plain == "a b [31mc"
    text = render(replies_table([result(reply="[bold]not markup[/bold] [/]")]))
    assert "[bold]not markup[/bold] [/]" in text


def test_replies_errors_and_open_turns_have_a_row_each() -> None:
    text = render(
        replies_table(
            [
                result(id="t1", question="你好，发票怎么开？", reply="请提供订单号。"),
                result(
                    id="t2", state="failed", error=ResultError(code="oops", message="Too long.")
                ),
                result(id="t3", state="queued"),
            ]
        )
    )
    assert "请提供订单号。" in text and "你好，发票怎么开？" in text
    assert "oops: Too long." in text and "queued" in text
    assert len({cell_len(line) for line in text.splitlines()}) == 1


def test_chinese_is_wrapped_and_not_cut() -> None:
    reply = "您好非常抱歉给您带来不便" * 5
    text = render(replies_table([result(question="", reply=reply)]))
    cells = [line.split("│")[3].strip() for line in text.splitlines() if line.startswith("│")]
    assert "".join(cells) == reply


def test_summary_names_the_figures() -> None:
    failures = (
        BatchFailures(error_code="bad", count=3, example="k-2", message="Too\x1b long."),
        BatchFailures(error_code="worker_lost", count=1),
    )
    progress = BatchProgress(
        total=40,
        failures=failures,
        states={TurnState.COMPLETED: 37, TurnState.PARKED: 1, TurnState.CANCELLED: 2},
        attempts=43,
        prompt_tokens=1200,
        completion_tokens=2450,
        latency_p50_s=1.234,
        latency_p95_s=5.678,
        answer_p50_s=0.5,
        answer_p95_s=0.9,
        sampled_count=37,
        cut_count=2,
        first_accepted_at=START,
        last_settled_at=START + timedelta(seconds=70),
    )
    text = render(batch_view.summary(progress, Path("out/results.jsonl")))
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "turns 37 of 40 completed, 1 failed, 2 cancelled",
        "failed 3 bad, such as row 'k-2': Too long.",
        "failed 1 worker_lost",
        "cut 2 of 37 replies end at their limit; --max-tokens allows more",
        "attempts 43",
        "latency p50 1.23 s, p95 5.68 s from acceptance to reply",
        "answering p50 0.50 s, p95 0.90 s from first attempt to reply",
        "tokens 1,200 prompt, 2,450 completion, 35.0 tokens/s",
        "wall time 1:10",
        "results out/results.jsonl",
    ]
    large = progress.model_copy(update={"sampled_count": 20})
    assert "2 of 20 sampled replies end" in render(batch_view.summary(large))
