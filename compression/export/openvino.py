"""Export to OpenVINO IR: a graph that reads a window of tokens, with weights in 16 bits.

OpenVINO converts the model in one call. The graph has no key-value cache: it scores texts. To chat,
export to GGUF, which the default engine turns into a graph with a cache.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from turnmill.compression.export.window import WINDOW, Window, divergence, probe
from turnmill.compression.step import Progress, State
from turnmill.schemas.errors import EngineFailure, InvalidInput

#: The most that the graph may diverge from its model, mean KL in nats.
LIMIT = 1e-3


def export(state: State, folder: Path, weights: str, progress: Progress) -> Mapping[str, object]:
    """Write `openvino/model.xml` and `model.bin` into the folder, run them and compare.

    The graph takes int64 token ids [1, window] and returns logits [1, window, vocabulary].

    Raises:
        InvalidInput: this exporter writes 16-bit weights only.
        EngineFailure: the graph does not answer as the model does.
    """
    # OpenVINO reports every conversion to its makers, unless the module that does so is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    if weights not in ("auto", "f16", "float16"):
        raise InvalidInput(f"OpenVINO IR is written in f16, not '{weights}'.", param="weights")
    progress.start(2, "writing openvino/model.xml")
    model, ids = Window(state.model.float().eval(), WINDOW), probe(state)
    graph = openvino.convert_model(model, example_input=ids, input=[1, WINDOW])
    target = folder / "openvino" / "model.xml"
    openvino.save_model(graph, target, compress_to_fp16=True)
    progress.advance()
    compiled = openvino.Core().compile_model(target, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    apart = divergence(torch.from_numpy(compiled(ids.numpy())[0]), model, ids)
    progress.advance()
    if not apart < LIMIT:
        raise EngineFailure(
            f"The OpenVINO graph diverges by {apart:.3g} nats a token from the model it was made "
            f"of, more than {LIMIT:g}."
        )
    return {"file": "openvino/model.xml", "weights": "f16", "window": WINDOW, "kl": apart}
