"""The recipes that ship are read, state their limits, and are named in the guide."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from turnmill.compression.recipe import read_recipe
from turnmill.compression.samples import find_recipe, recipe_names

GUIDE = (Path(__file__).parents[3] / "docs" / "compression.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_of_ours_is_read_and_explained(name: str) -> None:
    recipe = read_recipe(find_recipe(name))

    assert recipe.name == name
    assert recipe.limits.perplexity is not None
    assert f"| `{name}` |" in GUIDE
