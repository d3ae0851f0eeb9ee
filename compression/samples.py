"""What ships with the package: recipes, and a prose that no checkpoint was trained on."""

from pathlib import Path

from turnmill.schemas.errors import InvalidInput

RECIPES = Path(__file__).parent / "recipes"

#: Paragraphs of this project's own documentation.
PROSE = RECIPES / "prose.txt"


def find_recipe(name: str) -> Path:
    """Return the path of a recipe: a file, or one of ours by its name.

    Raises:
        InvalidInput: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    ours = _ours()
    if name not in ours:
        raise InvalidInput(
            f"There is no recipe '{name}': neither a file nor one of {', '.join(ours)}.",
            param="recipe",
        )
    return ours[name]


def recipe_names() -> list[str]:
    """Return the names of our recipes."""
    return list(_ours())


def _ours() -> dict[str, Path]:
    paths = {path.stem: path for path in RECIPES.glob("*.toml")}
    return dict(sorted(paths.items()))
