"""The README's map shows the folders as they are; all of it is small enough to be read."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOP = ("schemas", "producer", "workers", "compression", "infra", "tests")
#: More files than this are hard to tell apart.
MOST_FILES = 15
#: Lines of a file and of a function of what ships.
MOST_LINES, MOST_FUNCTION_LINES = 400, 80
#: Migrations are written once, and never read as a whole.
MIGRATIONS = "infra/migrations/versions/"
#: Why a folder may have more.
REASONS = {
    "infra/migrations/versions": "one file a migration, in their order",
    "tests/unit/compression": "one file a module of compression/",
}


def folders() -> list[Path]:
    """The folders of the code, without what tools leave behind."""
    found = [path for top in TOP for path in (ROOT / top).rglob("*.py")]
    return sorted({path.parent for path in found if "__pycache__" not in path.parts})


def map_of_the_readme() -> str:
    readme = (ROOT / "README.md").read_text()
    return readme[readme.index("Where things are:") : readme.index("The folders are imported as")]


def test_the_map_names_every_folder_of_the_second_level() -> None:
    shown = map_of_the_readme()
    second = {path.relative_to(ROOT).parts[:2] for path in folders()}
    names = {parts for parts in second if len(parts) == 2}
    assert [
        p for p in sorted(names) if f"{p[0]}/{p[1]}/" not in shown and f"`{p[1]}/`" not in shown
    ] == []


def test_the_map_names_no_folder_that_is_not_there() -> None:
    rows = re.findall(r"^\| `([a-z_/]+)/` \| (.*) \|$", map_of_the_readme(), flags=re.MULTILINE)
    named = [ROOT / folder for folder, _ in rows]
    named += [ROOT / folder / n for folder, text in rows for n in re.findall(r"`([a-z_]+)/`", text)]
    assert named
    assert [str(path) for path in named if not path.is_dir()] == []


def test_no_folder_has_more_files_than_can_be_told_apart() -> None:
    counts = {
        str(folder.relative_to(ROOT)): len(
            [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        )
        for folder in folders()
    }
    assert {name: n for name, n in counts.items() if n > MOST_FILES and name not in REASONS} == {}


def shipped() -> list[Path]:
    """The files of what ships, but for migrations."""
    found = [path for folder in folders() for path in folder.glob("*.py")]
    names = [(path, str(path.relative_to(ROOT))) for path in found]
    return [path for path, name in names if not name.startswith(("tests/", MIGRATIONS))]


def test_no_file_that_ships_is_too_long() -> None:
    counts = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in shipped()}
    assert {name: n for name, n in counts.items() if n > MOST_LINES} == {}


def test_no_function_that_ships_is_too_long() -> None:
    functions = [
        (f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in shipped()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {name: n for name, n in functions if n > MOST_FUNCTION_LINES} == {}
