"""What vLLM's child processes do for us, loaded by vLLM (entry point `vllm.general_plugins`).

They end when the process that asked for them has died, even by `kill -9`, and leave Ctrl-C
to it. Without this they would keep the GPU's memory for ever. (One whose parent dies before it
has said hello knows by itself, after five minutes; until then it holds no model.)
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

#: Set for our children; other programs' vLLM in the same environment is left alone.
MARK = "_TURNMILL_VLLM_CHILD"


@contextmanager
def dying_with_this_process() -> Iterator[None]:
    """vLLM's processes that are started within."""
    os.environ[MARK] = "1"
    try:
        yield
    finally:
        del os.environ[MARK]


def register() -> None:
    """Called once in every process of vLLM, before it loads the model."""
    parent = multiprocessing.parent_process()
    if parent is None or MARK not in os.environ:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_with(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)
