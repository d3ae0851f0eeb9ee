"""Speed and memory are those of the measured process alone."""

import subprocess
import sys

from turnmill.compression.evaluate import speed

_PROGRAM = f"from {speed.__name__} import peak_memory; print(peak_memory())"


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    ballast = b"x" * 400_000_000

    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=True)

    assert 10_000_000 < int(done.stdout) < len(ballast)
    assert speed.peak_memory() > len(ballast)
