"""Export to OpenVINO IR, run and compared."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")

from turnmill.compression.export.step import Export, ExportOptions
from turnmill.compression.step import Silent, State
from turnmill.schemas.errors import InvalidInput

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # The tracer's own.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def state(tiny_llama: Any, tiny_tokenizer: Any, tiny_texts: Any, tmp_path: Path) -> State:
    return State(tiny_llama, tiny_tokenizer, tiny_texts, lambda: tiny_llama, tmp_path, seed=1)


def test_the_graph_answers_like_the_model(state: State) -> None:
    told = Export()(state, ExportOptions(to="openvino"), Silent())
    assert told["kl"] < 1e-3
    weights = (state.folder / "files" / "openvino" / "model.bin").stat().st_size
    halves = 2 * sum(each.numel() for each in state.model.parameters())
    assert weights == pytest.approx(halves, rel=0.15)


def test_weights_that_it_does_not_write_are_refused(state: State) -> None:
    with pytest.raises(InvalidInput, match="written in f16, not 'q8_0'"):
        Export()(state, ExportOptions(to="openvino", weights="q8_0"), Silent())
