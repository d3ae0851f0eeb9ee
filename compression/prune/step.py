"""The steps `prune` and `drop-layers`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from turnmill.compression.calibration import check_linears, skeleton_of
from turnmill.compression.distill.step import DistillOptions, learn
from turnmill.compression.prune.masks import KeptZeros, parse_pattern
from turnmill.compression.prune.narrow import check_heads, check_mlp, drop_heads, narrow_mlp
from turnmill.compression.prune.schedule import cubic
from turnmill.compression.prune.structured import (
    block_influence,
    changed,
    config_of_groups,
    config_of_layers,
    decoder_layers,
    keep_layers,
)
from turnmill.compression.prune.weights import prune_weights
from turnmill.compression.step import Options, Progress, State
from turnmill.schemas.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_STRUCTURED = ("mlp", "heads")


class PruneOptions(Options):
    """What to prune, by which importance, and how to recover."""

    #: Weights by |w|, |w · g|, |w| · ‖x‖ or SparseGPT; or whole MLP channels, or whole groups of
    #: attention heads, which makes the matrices smaller.
    method: Literal["magnitude", "taylor", "wanda", "sparsegpt", "mlp", "heads"] = "wanda"
    #: The share that goes.
    sparsity: float = Field(0.5, gt=0, lt=1)
    #: KEPT:OF, such as 2:4, in place of a sparsity.
    pattern: str | None = None
    #: Prune in so many stages, ever sparser (the cubic schedule), and recover after each.
    stages: int = Field(1, ge=1)
    #: Training after each stage, with the options of the step `distill` (alpha = 1 fine-tunes).
    recovery: DistillOptions | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "PruneOptions":
        if self.stages > 1 and self.recovery is None:
            raise ValueError("stages without recovery end where one stage does: give recovery")
        if self.pattern:
            parse_pattern(self.pattern)
        if self.pattern and (self.stages > 1 or self.method in _STRUCTURED):
            raise ValueError("a pattern is pruned in one stage, and weight by weight")
        if self.stages > 1 and self.method in _STRUCTURED:
            raise ValueError(f"method '{self.method}' prunes in one stage")
        if self.recovery and self.recovery.has_student:
            raise ValueError("recovery trains the pruned model itself: name no other student")
        if self.recovery and self.recovery.teacher == "current":
            raise ValueError("a pruned model learns from the recipe's base: leave out teacher")
        return self

    def check(self, config: "PretrainedConfig") -> "PretrainedConfig":
        model = skeleton_of(config)
        if self.method == "mlp":
            return changed(config, intermediate_size=check_mlp(model, self.sparsity))
        if self.method == "heads":
            return config_of_groups(model, check_heads(model, self.sparsity))
        check_linears(model)
        return config


class Prune:
    """Set weights to zero, or cut channels or heads out of the model."""

    options = PruneOptions

    def __call__(
        self, state: State, options: PruneOptions, progress: Progress
    ) -> Mapping[str, object]:
        state.become_dense()
        recovery = []
        for stage in range(1, options.stages + 1):
            prune_once(state, options, cubic(stage, options.stages, options.sparsity), progress)
            if options.recovery:
                folder = state.folder / f"stage-{stage}"
                done = learn(state, state.teacher, options.recovery, progress, folder)
                recovery.append(dict(done))
        return {
            "recovery": recovery,
            "parameters": state.model.num_parameters(),
            "zeros": round(KeptZeros(state.model).share, 4),
        }


def prune_once(state: State, options: PruneOptions, sparsity: float, progress: Progress) -> None:
    """Prune to this sparsity, or to the options' pattern."""
    windows = state.texts.calibration
    if options.method == "mlp":
        state.model = narrow_mlp(state.model, windows, sparsity, progress)
    elif options.method == "heads":
        state.model = drop_heads(state.model, windows, sparsity, progress)
    else:
        pattern = parse_pattern(options.pattern) if options.pattern else None
        prune_weights(state.model, windows, options.method, sparsity, pattern, progress)


class DropLayersOptions(Options):
    """How many layers go, or which."""

    #: Drop so many, of the lowest block influence on the calibration windows.
    count: int | None = Field(None, ge=1)
    #: Drop these, counted from 0.
    layers: tuple[int, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _is_one(self) -> "DropLayersOptions":
        if (self.count is None) == (self.layers is None):
            raise ValueError("give count or layers")
        return self

    def check(self, config: "PretrainedConfig") -> "PretrainedConfig":
        model = skeleton_of(config)
        total = len(decoder_layers(model))
        # Which layers a count drops is known once their influence was measured.
        return config_of_layers(model, self.kept([0.0] * total))

    def kept(self, influence: Sequence[float]) -> list[int]:
        """Return the layers to keep, of as many as there are influences.

        Raises:
            InvalidInput: a layer that goes is none of the model's, or none would stay.
        """
        total = len(influence)
        dropped = set(self.layers or sorted(range(total), key=influence.__getitem__)[: self.count])
        if not dropped < set(range(total)):
            raise InvalidInput(
                f"Layers {sorted(dropped)} cannot be dropped from a model of {total}: name layers "
                f"from 0 to {total - 1}, and leave at least one.",
                param="layers",
            )
        return sorted(set(range(total)) - dropped)


class DropLayers:
    """Take whole decoder layers out of the model."""

    options = DropLayersOptions

    def __call__(
        self, state: State, options: DropLayersOptions, progress: Progress
    ) -> Mapping[str, object]:
        progress.start(len(state.texts.calibration), "influence")
        influence = block_influence(state.model, state.texts.calibration, progress.advance)
        kept = options.kept(influence)
        state.model = keep_layers(state.model, kept)
        state.become_dense()
        return {
            "dropped": sorted(set(range(len(influence))) - set(kept)),
            "influence": [round(each, 4) for each in influence],
            "parameters": state.model.num_parameters(),
        }
