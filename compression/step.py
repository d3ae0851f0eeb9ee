"""What every step of a recipe is given, what it answers, and the registry of steps.

Nothing here imports torch: reading a recipe takes milliseconds. Modules of steps are imported when
a pipeline runs them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from turnmill.schemas.errors import InvalidInput, SettingsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from turnmill.compression.quantize.affine import PackedWeight
    from turnmill.compression.texts import Texts

#: How the linear layers of a model are saved. `bnb-…` are the formats of bitsandbytes, the other
#: quantized ones those of compressed-tensors.
WeightFormat = Literal["dense", "int8", "int4", "w8a8", "bnb-int8", "bnb-nf4"]

#: Of the weights that no step quantizes.
Dtype = Literal["bfloat16", "float16", "float32"]

#: One line a step: its name in recipes, and "module:class" of a `Step`.
STEPS: dict[str, str] = {
    "finetune": "turnmill.compression.distill.finetune:Finetune",
    "distill": "turnmill.compression.distill.step:Distill",
    "on-policy": "turnmill.compression.distill.on_policy:OnPolicy",
    "prune": "turnmill.compression.prune.step:Prune",
    "drop-layers": "turnmill.compression.prune.step:DropLayers",
    "quantize": "turnmill.compression.quantize.step:Quantize",
    "qat": "turnmill.compression.quantize.qat:Qat",
    "export": "turnmill.compression.export.step:Export",
}


#: Steps that need a library beside those of the extra `compression`: its module, and the extra.
LIBRARIES = {"on-policy": ("trl", "on-policy")}


@dataclass
class State:
    """What a step works on. Steps change it in place."""

    #: In float32 or bfloat16 on the CPU. A step may replace it.
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    texts: "Texts"
    #: Load the base model anew.
    teacher: "Callable[[], PreTrainedModel]"
    #: The step's scratch folder: checkpoints, cached logits. It survives a kill. What the step puts
    #: into its subfolder `files` becomes part of the artifact.
    folder: Path
    seed: int
    #: By name of the linear layer, the `PackedWeight` (integers and scales) that its weight was
    #: rounded to. The model holds the same numbers dequantized. Steps that change weights clear it.
    packed: "dict[str, PackedWeight]" = field(default_factory=dict)
    #: Names of those of `packed` that were pruned before: their zero integers are pruned weights.
    pruned: frozenset[str] = frozenset()
    format: WeightFormat = "dense"
    #: What the weights that are not quantized are saved in.
    dtype: Dtype = "bfloat16"

    def become_dense(self) -> None:
        """Forget integers and format, after a change of the weights that they stood for."""
        self.packed.clear()
        self.pruned = frozenset()
        self.format = "dense"


class Options(BaseModel):
    """The base class of all steps' options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def check(self, config: "PretrainedConfig") -> "PretrainedConfig":
        """Refuse a model that the step cannot take, before the steps ahead of it have run.

        Returns the configuration of the model that comes out of the step.
        """
        return config


class Progress(Protocol):
    def start(self, total: float, label: str) -> None:
        """Begin a stage of `total` units of work, in place of the stage before."""

    def advance(self, done: float = 1) -> None:
        """Report that `done` more units are finished."""

    def note(self, text: str) -> None:
        """Show one line that stays."""


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, total: float, label: str) -> None:
        pass

    def advance(self, done: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Step(Protocol):
    """One step of a recipe.

    A step must give the same result for the same state and seed, and must resume from what it kept
    in `state.folder` with the same result bit for bit.
    """

    options: type[Options]

    def __call__(self, state: State, options: object, progress: Progress) -> Mapping[str, object]:
        """Change the state; return what the report says of the step, as JSON values."""


def check_libraries(kinds: Iterable[str]) -> None:
    """Refuse steps whose library is missing, before the steps ahead of them have run.

    Raises:
        SettingsError: naming the library and pip's command.
    """
    for kind in kinds:
        module, extra = LIBRARIES.get(kind, ("torch", "compression"))
        if find_spec(module) is None:
            raise SettingsError(
                f"The step '{kind}' needs '{module}', which is not installed: "
                f"pip install 'turnmill[{extra}]'"
            )


def find_step(name: str) -> Step:
    """Import the step of this name.

    Raises:
        InvalidInput: no step is called so.
        SettingsError: a library that the step needs is not installed.
    """
    if name not in STEPS:
        raise InvalidInput(f"There is no step '{name}'. Steps: {', '.join(STEPS)}.", param="kind")
    module, _, attribute = STEPS[name].partition(":")
    try:
        found: Step = getattr(import_module(module), attribute)()
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The step '{name}' needs '{error.name}', which is not installed: "
            "pip install 'turnmill[compression]'"
        ) from error
    return found
