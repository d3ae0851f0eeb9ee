"""Bare Celery, to compare with: a task that does nothing, acknowledged late.

`python noop.py worker` consumes; the benchmark imports `create_app` to publish. The queue,
the pool and the acknowledgement are the same as ours; everything else is Celery's default.
"""

import os
import sys

from celery import Celery
from kombu import Queue

QUEUE = "bench.noop"
LAST = "the last of the tasks is done"


def create_app(broker_url: str) -> Celery:
    app = Celery("noop", broker=broker_url, set_as_current=False)
    is_amqp = broker_url.startswith("amqp")
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_detect_quorum_queues=True,
        task_queues=[
            Queue(
                QUEUE,
                routing_key=QUEUE,
                queue_arguments={"x-queue-type": "quorum"} if is_amqp else None,
            )
        ],
        task_default_queue=QUEUE,
    )

    @app.task(name="noop", ignore_result=True)  # type: ignore[untyped-decorator]
    def noop(left: int) -> None:
        if left == 0:
            print(LAST, flush=True)  # noqa: T201 - the benchmark waits for this line

    return app


if __name__ == "__main__":
    create_app(os.environ["BENCH_BROKER_URL"]).worker_main(
        ["worker", "--pool=threads", f"--concurrency={sys.argv[1]}", "--without-gossip",
         "--without-mingle", "--loglevel=INFO"]
    )  # fmt: skip
