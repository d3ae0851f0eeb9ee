"""The README's map shows the folders as they are; all of it is small enough to be read."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
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

#: `Any` that is left in what ships. Whoever replaces one lowers the number, and nobody raises it.
MOST_ANY = {"schemas": 22, "producer": 22, "workers": 52, "infra": 16, "compression": 6}
#: Folders that are full of values of libraries without types, or hand on their arguments.
UNTYPED = {
    "workers/vendor": "what libraries keep to themselves",
    "workers/consumer": "Celery's and kombu's classes, and messages of anybody's",
    "workers/engines/torch": "transformers' attention and its cache",
    "workers/engines/openvino": "handles of OpenVINO GenAI, whose class has no public name",
    "workers/engines/triton": "Triton's Python backend",
    "infra/tfserving": "nests of tensors, and a checkpoint's config",
}
#: Database rows and the API's resources are typed throughout.
TYPED = ("schemas/store", "producer/api/resources")


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


def anys(tree: ast.AST) -> Iterator[ast.AST]:
    """`Any` wherever it stands for a type, in quoted ones too."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="Any") | ast.Attribute(attr="Any"):
                yield node
            case ast.Constant(value=str(text)) if "Any" in text:
                # Sentences are no expressions.
                with suppress(SyntaxError):
                    yield from anys(ast.parse(text.strip(), mode="eval"))


@cache
def any_counts() -> Counter[str]:
    """By file, `Any` in what ships."""
    files = {str(path.relative_to(ROOT)): path for path in shipped()}
    return Counter({n: len(list(anys(ast.parse(p.read_text())))) for n, p in files.items()})


def is_in(name: str, folders: Iterable[str]) -> bool:
    return name.startswith(tuple(f"{folder}/" for folder in folders))


def test_no_folder_gets_another_any() -> None:
    counts: Counter[str] = Counter()
    for name, count in any_counts().items():
        if not is_in(name, UNTYPED):
            counts[name.partition("/")[0]] += count
    assert {top: n for top, n in counts.items() if n > MOST_ANY[top]} == {}


def test_rows_and_resources_have_no_any() -> None:
    assert [n for n, count in any_counts().items() if count and is_in(n, TYPED)] == []


def test_folders_with_and_without_any_are_there() -> None:
    assert [folder for folder in (*UNTYPED, *TYPED) if not (ROOT / folder).is_dir()] == []
