"""A transformers checkpoint of a llama or a T5, as a SavedModel for TensorFlow Serving.

Runs where TensorFlow is installed; needs neither torch nor transformers.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tensorflow as tf
import typer
from rich.console import Console

from turnmill.infra.tfserving.checkpoint import Checkpoint
from turnmill.infra.tfserving.llama import Llama
from turnmill.infra.tfserving.signatures import classifying, generating
from turnmill.infra.tfserving.t5 import T5

#: What a worker reads: the tokenizer, the chat template, the labels and the end tokens.
ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
CLASSIFIER = "LlamaForSequenceClassification"
#: By config.json's `model_type`.
WRITERS: dict[str, Callable[[Checkpoint], Llama | T5]] = {"llama": Llama, "t5": T5}


def export(
    model: Annotated[Path, typer.Argument(help="Folder with config.json and *.safetensors.")],
    folder: Annotated[Path, typer.Argument(help="Where TensorFlow Serving looks for the model.")],
    version: Annotated[int, typer.Option(min=1, help="The folder of this version.")] = 1,
) -> None:
    """Write FOLDER/VERSION: `generate` of a chat model, or `classify` of a classifier.

    What workers need of it lies in FOLDER/VERSION/assets.extra: name that folder in
    TURNMILL_ENGINE__MODEL.

    Example: python -m turnmill.infra.tfserving.export ~/models/smollm2 models/smollm2 --version 1
    """
    console = Console(highlight=False)
    target = folder / str(version)
    if target.exists():
        console.print(f"{target} is there already. Versions do not change: choose another.")
        raise typer.Exit(1)
    try:
        module, signatures = build(model)
    except (OSError, ValueError, KeyError) as error:
        console.print(f"{model} cannot be exported: {error}")
        raise typer.Exit(1) from error
    # TensorFlow Serving loads a version as soon as its folder is there: it comes complete. A name
    # that is no number is not a version.
    partial = folder / f"{version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tf.saved_model.save(module, str(partial), signatures=signatures)
    (partial / "assets.extra").mkdir()
    for name in ASSETS:
        if (model / name).exists():
            shutil.copy(model / name, partial / "assets.extra" / name)
    partial.replace(target)
    console.print(f"{target}: {', '.join(sorted(signatures))}")


def build(model: Path) -> tuple[tf.Module, dict[str, "tf.types.experimental.ConcreteFunction"]]:
    """A tf.Module that holds the weights, and its signatures.

    Raises:
        ValueError, KeyError: the checkpoint is of a kind that is not computed here.
        OSError: it cannot be read.
    """
    checkpoint = Checkpoint(model)
    kind = checkpoint.config.get("model_type")
    if kind not in WRITERS:
        raise ValueError(f"it is a {kind}, and none of {', '.join(WRITERS)}")
    writer = WRITERS[kind](checkpoint)
    module = tf.Module()
    module.weights = writer.weights
    if isinstance(writer, Llama) and checkpoint.is_a(CLASSIFIER):
        name, signature = "classify", classifying(writer.classify, writer.prompt)
    else:
        name, signature = "generate", generating(writer, checkpoint.end_ids)
    return module, {name: signature, "serving_default": signature}


if __name__ == "__main__":
    typer.run(export)
