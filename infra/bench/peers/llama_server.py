"""llama.cpp's own server, out of the wheel `xllamacpp`, as a process of its own.

python llama_server.py MODEL NAME SLOTS CONTEXT_WINDOW

serves a GGUF file under a name on a free port of loopback, prints its address, and ends with
whoever holds its standard input. https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

import os
import sys
from contextlib import AbstractContextManager

from turnmill.infra.bench.announced import Announced, announced

#: llama.cpp's log: errors only.
VERBOSITY = 1

#: For each slot.
HTTP_THREADS = 4


def serving_llama(
    model: str, name: str, slots: int, context_window: int
) -> AbstractContextManager[Announced]:
    """A server of `model`, a GGUF file, for `slots` turns at once of `context_window` tokens each.

    Raises:
        RuntimeError: it does not come up.
    """
    return announced(sys.executable, __file__, model, name, str(slots), str(context_window))


def _serve(model: str, name: str, slots: int, context_window: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = model, {name}
    params.port = 0
    params.n_parallel, params.n_ctx = slots, slots * context_window
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    # One for each connection: those that wait for a slot keep one, too.
    params.n_threads_http = HTTP_THREADS * slots
    params.verbosity = VERBOSITY
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)  # noqa: T201
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
