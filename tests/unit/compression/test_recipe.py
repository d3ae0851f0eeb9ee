"""Recipes: TOML or flags, and errors that name the key."""

from pathlib import Path

import pytest

from tests.compression_steps import NUDGE
from turnmill.compression import step
from turnmill.compression.recipe import parse_recipe, read_recipe, recipe_of_flags
from turnmill.compression.samples import RECIPES, find_recipe
from turnmill.schemas.errors import InvalidInput

TOML = """
name = "small"
seed = 7
[windows]
length = 64
[[step]]
kind = "nudge"
rounds = 2
[[step]]
kind = "nudge"
size = 0.5
[limits]
perplexity = 1.05
"""


@pytest.fixture(autouse=True)
def nudge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.STEPS, "nudge", NUDGE)


def test_a_file_and_flags_give_the_same_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(TOML)
    file = read_recipe(tmp_path / "r.toml").as_json()

    flags = recipe_of_flags(
        ["nudge:rounds=2", "nudge:size=0.5"], ["perplexity=1.05"], ["length=64"], seed=7
    ).as_json()

    assert file | {"name": ""} == flags | {"name": ""}
    assert file["step"][0] == {"kind": "nudge", "size": 0.01, "rounds": 2}


def test_a_recipe_survives_being_written_as_json(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(TOML)
    recipe = read_recipe(tmp_path / "r.toml")

    assert parse_recipe(recipe.as_json()) == recipe


def test_a_recipe_without_a_name_is_called_like_its_file(tmp_path: Path) -> None:
    (tmp_path / "tickets.toml").write_text('step = [{kind = "nudge"}]')

    assert read_recipe(tmp_path / "tickets.toml").name == "tickets"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[step]]\nkind = 'nudge'\nruonds = 2", r"step 1 \(nudge\) 'ruonds'.*size, rounds"),
        ("[[step]]\nkind = 'nudge'\nrounds = 'x'", r"step 1 \(nudge\) 'rounds'"),
        ("[[step]]\nkind = 'shrink'", "no step 'shrink'.*quantize"),
        ("[[step]]\nrounds = 2", "step 1 has no 'kind'"),
        ("step = []", "'step'"),
        ("sed = 1\nstep = [{kind = 'nudge'}]", "'sed'.*seed"),
        ("step = [{kind = 'nudge'}]\n[limits]\nperplxity = 1", r"'limits.perplxity'.*perplexity"),
        ("step = [{kind = 'nudge'}]\n[windows]\nlength = 1", r"'windows.length'"),
        ("step = [{kind = 'export'}, {kind = 'nudge'}]", "'export' must come last"),
        ("step = ", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "r.toml").write_text(content)

    with pytest.raises(InvalidInput, match=said):
        read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("flag", ["nudge:rounds", "nudge:rounds=1,rounds=2", "", "nudge:rounds=x"])
def test_a_mistake_in_a_flag_is_refused(flag: str) -> None:
    with pytest.raises(InvalidInput):
        recipe_of_flags([flag])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.toml cannot be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_recipe_of_ours_is_found_by_its_name(name: str) -> None:
    pytest.importorskip("torch", reason="pip install 'turnmill[compression]'")

    recipe = read_recipe(find_recipe(name))

    assert recipe.name == name
    assert recipe.steps


def test_an_unknown_recipe_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match=r"neither a file nor one of f16, int4, .*int8, .*w8a8"):
        find_recipe("int3")
