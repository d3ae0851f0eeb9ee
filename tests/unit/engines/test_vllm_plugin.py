"""The children of a killed worker end with it, whatever library started them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAM = """
import multiprocessing, time
from turnmill.workers.engines.vllm.plugin import dying_with_this_process, register

def live():
    register()
    print("ready", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with dying_with_this_process():
        child = multiprocessing.get_context("spawn").Process(target=live)
        child.start()
    child.join()
"""


def test_a_child_ends_with_a_killed_parent(tmp_path: Path, eventually: Callable[..., None]) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children()
        assert children
        parent.kill()
        eventually(lambda: not any(each.is_running() for each in children))
