"""Export to LiteRT (TensorFlow Lite): one .tflite file that reads a window of tokens.

The file takes int32 token ids [1, window], padded at the end, and returns the logits of every
position, float32 [1, window, vocabulary]. It is run on a probe before it is kept, and compared with
the model that it was made of.

litert-torch wants versions of its own of what other parts use: `make litert` makes an environment
for it, in which this file is a program too.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy
import torch
from torch import Tensor, nn

from turnmill.compression.export.window import WINDOW, Window, divergence, probe
from turnmill.compression.step import Progress, Silent, State
from turnmill.schemas.errors import EngineFailure, InvalidInput

Weights = Literal["float16", "int8"]

#: The most that a file may diverge from its model, mean KL in nats: above, the conversion is wrong.
LIMITS: dict[Weights, float] = {"float16": 1e-3, "int8": 0.2}


def export(state: State, folder: Path, weights: str, progress: Progress) -> Mapping[str, object]:
    """Write `model-float16.tflite` or `model-int8.tflite` into the folder.

    Returns the file's name and how far its answers are from the model's.

    Raises:
        InvalidInput: LiteRT has no such weights.
        EngineFailure: the file does not answer as the model does.
    """
    kind: Weights = "int8" if state.format != "dense" else "float16"
    if weights not in ("auto", "float16", "int8"):
        raise InvalidInput(f"LiteRT has no weights '{weights}': float16, int8.", param="weights")
    if weights != "auto":
        kind = "int8" if weights == "int8" else "float16"
    progress.start(3, f"writing model-{kind}.tflite")
    target = folder / f"model-{kind}.tflite"
    model = Window(state.model.float().eval(), WINDOW)
    convert(model, target, kind)
    progress.advance(2)
    ids = probe(state)
    apart = divergence(run(target, ids), model, ids)
    progress.advance()
    if not apart < LIMITS[kind]:
        target.unlink()
        raise EngineFailure(
            f"The converted model diverges by {apart:.3g} nats a token from the one it was made "
            f"of, more than {LIMITS[kind]:g}: the file is not kept."
        )
    return {"file": target.name, "weights": kind, "window": WINDOW, "kl": apart}


def convert(model: nn.Module, target: Path, weights: Weights) -> None:
    """Convert a module on int64 [1, window] to a .tflite file with weights of this kind."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    whole = target.with_suffix(".float32")
    ids = torch.zeros(1, WINDOW, dtype=torch.int64)
    try:
        litert_torch.convert(model, (ids,)).export(str(whole))
        made = quantizer.Quantizer(str(whole))
        made.load_quantization_recipe(
            recipe.dynamic_wi8_afp32() if weights == "int8" else float16_recipe()
        )
        target.unlink(missing_ok=True)
        made.quantize().export_model(str(target))
    finally:
        whole.unlink(missing_ok=True)


def float16_recipe() -> list[dict[str, object]]:
    """Every weight to float16; the arithmetic stays in float32."""
    return [
        {
            "regex": ".*",
            "operation": "*",
            "algorithm_key": "float_casting",
            "op_config": {
                "weight_tensor_config": {
                    "num_bits": 16,
                    "dtype": "FLOAT",
                },
                "compute_precision": "FLOAT",
                "explicit_dequantize": True,
                "skip_checks": False,
            },
        }
    ]


def run(path: Path, ids: Tensor) -> Tensor:
    """Return the logits of the file for token ids [1, window], float32."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=2)
    interpreter.allocate_tensors()
    interpreter.set_tensor(
        interpreter.get_input_details()[0]["index"], ids.numpy().astype(numpy.int32)
    )
    interpreter.invoke()
    return torch.from_numpy(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert a checkpoint or artifact from the command line, and print what came of it."""
    from turnmill.compression.checkpoint import load_tokenizer
    from turnmill.compression.texts import Texts

    parser = argparse.ArgumentParser(description="Convert a checkpoint to LiteRT.")
    parser.add_argument("model", type=Path, help="folder of a transformers checkpoint")
    parser.add_argument("folder", type=Path, help="where the .tflite file goes")
    parser.add_argument("--weights", choices=["auto", "float16", "int8"], default="auto")
    parser.add_argument("--probe", default="What is the capital of France?")
    chosen = parser.parse_args(arguments)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32)
    tokenizer = load_tokenizer(chosen.model)
    ids = torch.tensor([tokenizer.encode(chosen.probe)])
    texts = Texts(ids, ids, ids, ids, (), "")
    state = State(model, tokenizer, texts, lambda: model, chosen.folder, seed=1)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(export(state, chosen.folder, chosen.weights, Silent())))  # noqa: T201


if __name__ == "__main__":
    main()
