"""Tokens a second, load time and peak memory of a model, in a process of its own.

Other load on the machine moves these figures by tens of per cent, so models that are compared are
measured in turn, several rounds, and the best round of each counts. Nothing is gated on speed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from turnmill.compression.evaluate.loading import Dtype, load_fast
from turnmill.compression.step import Progress, Silent
from turnmill.schemas.errors import EngineFailure
from turnmill.schemas.process.dependent import run_dependent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Tokens of the prompt, and tokens generated after it, of each sequence.
PROMPT, GENERATED = 32, 24

#: Seconds that one measurement may take, loading included.
_TIMEOUT_S = 900


class Speed(BaseModel):
    """What one process measured; of several rounds, the best of each figure."""

    model_config = ConfigDict(frozen=True)

    #: Tokens a second while decoding, prefill subtracted, at batch sizes 1 and 8.
    batch_1: float
    batch_8: float
    load_s: float
    #: Peak resident set of the process, loading included, in bytes.
    peak_bytes: int
    #: The machine's load average over one minute, the highest of the rounds.
    load_average: float
    rounds: int = 1


def measure_speeds(
    paths: Mapping[str, Path],
    *,
    rounds: int = 2,
    dtype: Dtype = "bfloat16",
    progress: Progress | None = None,
) -> dict[str, Speed]:
    """Measure models by name, interleaved: each round measures every model once.

    Raises:
        EngineFailure: a model cannot be loaded, or its process dies.
    """
    progress = progress or Silent()
    measured: dict[str, list[Speed]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            measured[name].append(_in_a_process(path, dtype))
            progress.advance()
    return {name: _best(each) for name, each in measured.items()}


def _best(measured: Sequence[Speed]) -> Speed:
    return Speed(
        batch_1=max(each.batch_1 for each in measured),
        batch_8=max(each.batch_8 for each in measured),
        load_s=min(each.load_s for each in measured),
        peak_bytes=min(each.peak_bytes for each in measured),
        load_average=max(each.load_average for each in measured),
        rounds=len(measured),
    )


def _in_a_process(path: Path, dtype: Dtype) -> Speed:
    command = [sys.executable, "-m", __name__, str(path), dtype]
    try:
        done = run_dependent(command, timeout_s=_TIMEOUT_S)
        done.check_returncode()
    except subprocess.TimeoutExpired as error:
        raise EngineFailure(f"Measuring {path} took over {_TIMEOUT_S} s.") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineFailure(f"{path} cannot be measured: {last}") from error
    return Speed.model_validate_json(done.stdout.strip().splitlines()[-1])


def _measure(path: Path, dtype: Dtype) -> dict[str, object]:
    """Load and run the model in this process."""
    started = time.perf_counter()
    model = load_fast(path, dtype)
    load_s = time.perf_counter() - started
    rates = {f"batch_{size}": _rate(model, size) for size in (1, 8)}
    return {
        **rates,
        "load_s": load_s,
        "peak_bytes": peak_memory(),
        "load_average": os.getloadavg()[0],
    }


def peak_memory() -> int:
    """Return this program's peak resident set, in bytes.

    On Linux not getrusage's: that one begins with the peak of the process that started this one
    (`exec_mmap` of the kernel), which has had models in memory itself.
    """
    with suppress(FileNotFoundError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    # Bytes on macOS, kilobytes elsewhere (getrusage(2)).
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rate(model: "PreTrainedModel", batch: int) -> float:
    """Return tokens a second of greedy decoding, the better of two runs."""
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (batch, PROMPT), generator=torch.Generator().manual_seed(0))

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return time.perf_counter() - started

    seconds(1)
    best = min(seconds(GENERATED + 1) - seconds(1) for _ in range(2))
    return batch * GENERATED / max(best, 1e-9)


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), sys.argv[2])))  # type: ignore[arg-type]  # noqa: T201
