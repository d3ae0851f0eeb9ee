"""The step `export`: writes the model in another format beside the artifact's checkpoint."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from turnmill.compression.export import gguf
from turnmill.compression.step import Options, Progress, State
from turnmill.schemas.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Format → "module:function"; a function writes files into a folder and returns what it tells.
EXPORTERS = {
    "gguf": "turnmill.compression.export.gguf:export",
    "litert": "turnmill.compression.export.litert:export",
    "openvino": "turnmill.compression.export.openvino:export",
}


#: What an exporter imports beside torch and transformers.
LIBRARIES = {"gguf": "gguf", "litert": "litert_torch", "openvino": "openvino"}


class ExportOptions(Options):
    #: `gguf`: for the default engine. `litert`: TensorFlow Lite. `openvino`: OpenVINO IR.
    to: Literal["gguf", "litert", "openvino"] = "gguf"
    #: `auto` is what the quantized weights are exact in, else 16 bits.
    weights: Literal["auto", "f16", "q8_0", "q4_0", "float16", "int8"] = "auto"

    def check(self, config: "PretrainedConfig") -> "PretrainedConfig":
        if find_spec(LIBRARIES[self.to]) is None:
            raise SettingsError(
                f"Exporting to {self.to} needs '{LIBRARIES[self.to]}', which is not installed; see "
                "docs/compression.md."
            )
        if self.to == "gguf":
            gguf.check(config)
        return config


class Export:
    options = ExportOptions

    def __call__(
        self, state: State, options: ExportOptions, progress: Progress
    ) -> Mapping[str, object]:
        module, _, function = EXPORTERS[options.to].partition(":")
        folder = state.folder / "files"
        folder.mkdir(exist_ok=True)
        exporter = getattr(import_module(module), function)
        told: Mapping[str, object] = exporter(state, folder, options.weights, progress)
        return told
