"""Recipes: which steps compress a model, with which options, and the limits of the result.

A recipe is a TOML file, or the same as flags:

    name = "support-int4"
    [windows]
    length = 256
    [[step]]
    kind = "quantize"
    method = "gptq"
    bits = 4
    [limits]
    perplexity = 1.08
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from turnmill.compression.step import Dtype, Options, find_step
from turnmill.compression.texts import Windows
from turnmill.schemas.errors import InvalidInput

ModelT = TypeVar("ModelT", bound=BaseModel)


class Limits(Options):
    """What an artifact may cost at most; one that misses a limit is kept but not promoted.

    Ratios are those of the artifact to the model that was compressed, on held-out text.
    """

    #: Ratio of perplexities on her dialogue.
    perplexity: float | None = Field(default=None, gt=0)
    #: Ratio of perplexities on prose that the recipe never saw.
    prose: float | None = Field(default=None, gt=0)
    #: Ratio of bytes on disk.
    size: float | None = Field(default=None, gt=0)
    #: Mean KL divergence from the original's next-token distribution, nats, at most.
    kl: float | None = Field(default=None, gt=0)
    #: Share of tokens at which both models prefer the same next token, at least.
    top1: float | None = Field(default=None, gt=0, le=1)


@dataclass(frozen=True)
class StepSpec:
    kind: str
    options: Options


@dataclass(frozen=True)
class Recipe:
    name: str
    steps: tuple[StepSpec, ...]
    windows: Windows = field(default_factory=Windows)
    limits: Limits = field(default_factory=Limits)
    seed: int = 1
    dtype: Dtype = "bfloat16"

    def as_json(self) -> dict[str, object]:
        """Return the recipe with every default filled in, as `parse_recipe` takes it."""
        return {
            "name": self.name,
            "seed": self.seed,
            "dtype": self.dtype,
            "windows": self.windows.model_dump(mode="json"),
            "step": [
                {"kind": each.kind, **each.options.model_dump(mode="json")} for each in self.steps
            ],
            "limits": self.limits.model_dump(mode="json", exclude_none=True),
        }


class _File(Options):
    """The keys of a recipe; those of a step are checked by its own options."""

    name: str = "recipe"
    seed: int = 1
    dtype: Dtype = "bfloat16"
    windows: Windows = Windows()
    step: list[dict[str, object]] = Field(min_length=1)
    limits: Limits = Limits()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a TOML file; its name is the file's, unless the recipe has one.

    Raises:
        InvalidInput: the file cannot be read, or a key or value is wrong; the error names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The recipe {path} is not TOML: {error}.") from error
    return parse_recipe({"name": path.stem, **content}, source=str(path))


def recipe_of_flags(
    steps: Sequence[str],
    limits: Sequence[str] = (),
    windows: Sequence[str] = (),
    *,
    seed: int = 1,
) -> Recipe:
    """Make a recipe of flags such as `quantize:bits=4,method=gptq` and `perplexity=1.05`."""
    content = {
        "name": "-".join(step.partition(":")[0] for step in steps) or "recipe",
        "seed": seed,
        "step": [_step_of_flag(step) for step in steps],
        "limits": _pairs(limits, "--limit"),
        "windows": _pairs(windows, "--window"),
    }
    return parse_recipe(content, source="the flags")


def parse_recipe(content: Mapping[str, object], *, source: str = "the recipe") -> Recipe:
    """Check a recipe's keys and values, those of each step by the step's own options."""
    file = _validated(_File, content, source, "")
    steps = tuple(
        _parse_step(each, source, f"step {number} ")
        for number, each in enumerate(file.step, start=1)
    )
    _check_exports_last(steps, source)
    _check_qat_follows_quantize(steps, source)
    return Recipe(file.name, steps, file.windows, file.limits, file.seed, file.dtype)


def _check_exports_last(steps: Sequence[StepSpec], source: str) -> None:
    kinds = [each.kind for each in steps]
    if "export" in kinds and set(kinds[kinds.index("export") :]) != {"export"}:
        raise InvalidInput(
            f"{source}: 'export' must come last: later steps would change the weights that it "
            "wrote.",
            param="kind",
        )
    before = [each for each in steps if each.kind != "export"][-1:]
    if "export" in kinds and any(_is_bitsandbytes(each) for each in before):
        raise InvalidInput(
            f"{source}: no other format holds the weights of bitsandbytes; 'export' would write "
            "them as they were before. Leave it out, or quantize with another method.",
            param="kind",
        )


def _is_bitsandbytes(step: StepSpec) -> bool:
    method: str = getattr(step.options, "method", "")
    return step.kind == "quantize" and method.startswith("bnb")


def _check_qat_follows_quantize(steps: Sequence[StepSpec], source: str) -> None:
    """Every other step hands on weights that are not rounded, or are bitsandbytes' own."""
    for before, each in zip([None, *steps], steps, strict=False):
        if each.kind != "qat" or (before and before.kind == "qat"):
            continue
        if before is None or before.kind != "quantize" or _is_bitsandbytes(before):
            raise InvalidInput(
                f"{source}: 'qat' trains a quantized model: put it right behind a step 'quantize' "
                "with another method than bitsandbytes'.",
                param="kind",
            )


def _parse_step(content: Mapping[str, object], source: str, where: str) -> StepSpec:
    others = dict(content)
    kind = others.pop("kind", None)
    if not isinstance(kind, str):
        raise InvalidInput(f"{source}: {where}has no 'kind'.", param="kind")
    options = find_step(kind).options
    return StepSpec(kind, _validated(options, others, source, f"{where}({kind}) "))


def _validated(
    model: type[ModelT], content: Mapping[str, object], source: str, where: str
) -> ModelT:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            inner = _model_at(model, first["loc"][:-1])
            said = f"no such key; there are {', '.join(inner.model_fields)}"
        else:
            said = first["msg"].removeprefix("Value error, ")
        named = f"'{key}': " if key else ""  # A rule about several keys names them itself.
        raise InvalidInput(f"{source}: {where}{named}{said}.", param=key) from error


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    for part in location:
        inner = model.model_fields[str(part)].annotation if isinstance(part, str) else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _step_of_flag(flag: str) -> dict[str, object]:
    """`kind:key=value,…`, where values may be TOML lists."""
    kind, _, options = flag.partition(":")
    try:
        return {"kind": kind, **tomllib.loads(f"options = {{{options}}}")["options"]}
    except tomllib.TOMLDecodeError:
        return {"kind": kind, **_pairs(options.split(","), "--step")}


def _pairs(flags: Sequence[str], flag: str) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for each in flags:
        key, separator, value = each.partition("=")
        if not separator:
            raise InvalidInput(f"{flag} '{each}': expected key=value.", param=key)
        if key in pairs:
            raise InvalidInput(f"{flag}: '{key}' is given twice.", param=key)
        pairs[key] = _value(value)
    return pairs


def _value(text: str) -> object:
    """A TOML value where it is one; else the text itself, so that names need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
