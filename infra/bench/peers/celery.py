"""Plain Celery with plain `generate`, to compare with: one task is one chat.

`python celery_peer.py` is its worker: one chat at a time, acknowledged late, as one writes it
in an afternoon. The benchmark publishes to it on the same kind of broker and reads its log.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from celery import Celery

from turnmill.infra.bench.measure import Run, peak_mib
from turnmill.infra.bench.peers import peers
from turnmill.infra.bench.servers import process, servers, wait_for
from turnmill.infra.bench.workload import Chat
from turnmill.schemas.settings import EngineSettings, load_settings
from turnmill.schemas.turns import Message

TASK = "generate"
#: Before each result in the worker's log.
MARK = "generated: "


def measure(settings: EngineSettings, broker: str, chats: Sequence[Chat], most_s: float) -> Run:
    """All chats published at once; stopped between two of them after `most_s` seconds."""
    run = Run()
    with (
        servers(broker, 1, settings) as site,
        process(site, str(Path(__file__)), ready="ready.") as log,
    ):
        app = create_app(site.broker.url.get_secret_value())
        _publish(app, chats[:1])
        wait_for(lambda: bool(_results(log)), 300)
        started_at = time.perf_counter()
        _publish(app, chats)
        while run.chats < len(chats) and run.took_s < most_s:
            done = run.chats
            wait_for(lambda seen=done: len(_results(log)) > seen + 1, 600)  # type: ignore[misc]
            run.chats, run.took_s = len(_results(log)) - 1, time.perf_counter() - started_at
        for each in _results(log)[1 : run.chats + 1]:
            run.tokens += each["tokens"]
            run.prompt_tokens += each["prompt_tokens"]
            run.peak_mib = each["peak_mib"]
        app.control.purge()
    return run


def create_app(broker_url: str) -> Celery:
    app = Celery("generate", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_redirect_stdouts=False,
    )
    return app


def _publish(app: Celery, chats: Sequence[Chat]) -> None:
    for chat in chats:
        messages = [each.model_dump(mode="json") for each in chat.messages]
        app.send_task(TASK, (messages, chat.max_tokens))


class _Figures(TypedDict):
    """Of one chat: a line that a worker prints."""

    tokens: int
    prompt_tokens: int
    peak_mib: float


def _results(log: Path) -> list[_Figures]:
    lines = log.read_text().splitlines()
    return [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]


def _work() -> None:
    import torch

    app = create_app(os.environ["BENCH_BROKER_URL"])
    model, tokenizer = peers.load(load_settings().engine)

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def generate(messages: list[dict[str, str]], max_tokens: int) -> None:
        chat = Chat(tuple(Message.model_validate(each) for each in messages), max_tokens)
        ids = peers.prompt_ids(tokenizer, chat)
        with torch.inference_mode():
            tokens = peers.generate(model, ids, max_tokens)
        figures: _Figures = {
            "tokens": tokens,
            "prompt_tokens": ids.shape[1],
            "peak_mib": peak_mib(),
        }
        print(MARK + json.dumps(figures), flush=True)  # noqa: T201 - the benchmark reads it

    app.worker_main(["worker", "--pool=solo", "--without-gossip", "--without-mingle",
                     "--loglevel=INFO"])  # fmt: skip


if __name__ == "__main__":
    _work()
