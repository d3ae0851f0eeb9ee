"""The process of a real engine is killed with turns in it: all of them are answered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from turnmill.producer.accept import accept_many
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.consumer.drain import HUNG_STATUS

pytest.importorskip("torch", reason="pip install 'turnmill[transformers]'")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> Path:
    tiny_llama.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_all_turns_are_answered_though_the_process_of_their_engine_is_killed(
    make_system: Callable[..., Any], database_url: str, valkey_url: str, checkpoint: Path,
    eventually: Callable[..., None],
) -> None:  # fmt: skip
    system = make_system(database_url, valkey_url)
    engine = {
        "TURNMILL_ENGINE__NAME": "transformers",
        "TURNMILL_ENGINE__MODEL": str(checkpoint),
        "TURNMILL_ENGINE__SERVED_NAME": system.settings.engine.model_name,
    }
    system.start("relay")
    doomed = system.start("worker", **engine)
    params = GenerationParams(max_tokens=200)
    requests = [system.request(f"turn {n}", params=params) for n in range(24)]
    accept_many(system.database, requests)
    eventually(lambda: system.count("state = 'running'") >= 4, 120)
    (child,) = psutil.Process(doomed.pid).children()
    child.kill()
    assert doomed.wait(timeout_s=60) == HUNG_STATUS, "its supervisor starts another one"
    assert system.count("crashes > 0 OR state = 'running'") > 0
    system.start("worker", **engine)
    system.wait_until_settled(180)
    assert system.count("state = 'completed'") == len(requests)
    assert system.count("failures > 0 OR crashes > 1") == 0
