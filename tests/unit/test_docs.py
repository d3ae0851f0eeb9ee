"""The documentation is true: what it lists is what there is.

`python tests/unit/test_docs.py` writes docs/configuration.md anew and prints the states chart.
"""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.main import get_command

from turnmill.producer.cli.app import app
from turnmill.schemas.process.surroundings import PREFIX
from turnmill.schemas.settings import Section, Settings, variable_names
from turnmill.schemas.turns import TRANSITIONS, TurnState
from turnmill.workers.engines.registry import ENGINES

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docs" / "configuration.md"
SETTINGS = ROOT / "schemas" / "settings"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

INTRODUCTION = """\
# Configuration

Every setting is an environment variable. Lists are JSON (`TURNMILL_WORKER__LANES='["batch"]'`).
An empty variable counts as not given. A variable that begins with `TURNMILL_` and is not listed
here is an error, but for those that Kubernetes derives from the names of Services. While an
embedded stack runs, its data folder's `stack.json` fills in where things listen; variables win.

Of libpq's variables those of authentication and TLS count (`PGPASSFILE`, `PGPASSWORD`, `PGSSL…`,
`PGREQUIREAUTH`, `PGCHANNELBINDING`, `PGKRBSRVNAME`, `PGGSSLIB`) where the URL leaves them open, but
never for the embedded PostgreSQL; the others, Celery's and Flower's are ignored or refused.
Variables of proxies (`HTTPS_PROXY`, `NO_PROXY`) count, but never for this machine itself.

This page is generated from `schemas/settings/`.
"""


#: The defaults of the settings without a section, for people.
DEFAULTS = {
    "data": "`~/.local/share/turnmill`, for root `/var/lib/turnmill`",
    "config": "`turnmill.toml` in the data folder",
    "tenant": "`default`",
}


def configuration_page() -> str:
    source = "\n".join(path.read_text() for path in sorted(SETTINGS.glob("*.py")))
    lines = [INTRODUCTION]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            continue
        lines += [f"## {name}", "", "| variable | default | meaning |", "|---|---|---|"]
        body = source[source.index(f"class {section.__name__}(") :]
        for inner, inner_field in section.model_fields.items():
            default = inner_field.get_default(call_default_factory=True)
            default = default.get_secret_value() if isinstance(default, SecretStr) else default
            shown = [str(part) for part in default] if isinstance(default, tuple) else default
            meaning = _comment(body, inner)
            lines.append(f"| `{PREFIX}{name.upper()}__{inner.upper()}` | `{shown}` | {meaning} |")
        lines.append("")
    lines += ["## Without a section", "", "| variable | default | meaning |", "|---|---|---|"]
    body = source[source.index("class Settings(") :]
    for name, default in DEFAULTS.items():
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {_comment(body, name)} |")
    return "\n".join([*lines, ""])


def _comment(body: str, field: str) -> str:
    """The `#:` lines above a field."""
    match = re.search(rf"((?:    #: .*\n)*)    {field}: ", body)
    assert match is not None, field
    return " ".join(line.strip()[3:] for line in match.group(1).splitlines())


def states_chart() -> str:
    lines = ["stateDiagram-v2", "    [*] --> waiting", "    [*] --> queued"]
    lines.append("    [*] --> handed_off")
    lines += [
        f"    {source} --> {target}"
        for source in TurnState
        for target in TurnState
        if target in TRANSITIONS[source]
    ]
    return "\n".join(lines)


def test_the_configuration_page_is_the_settings() -> None:
    assert CONFIGURATION.read_text() == configuration_page()


def test_the_states_chart_is_the_transitions_table() -> None:
    assert f"```mermaid\n{states_chart()}\n```" in (ROOT / "README.md").read_text()


def test_every_setting_named_in_the_docs_exists() -> None:
    known = set(variable_names())
    for page in PAGES:
        named = set(re.findall(r"TURNMILL_[A-Z0-9_]+[A-Z0-9]", page.read_text()))
        assert named <= known, page


def test_every_command_is_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"(turnmill|make) {name}\b|`{name}`", text), name


def test_every_engine_is_in_the_docs() -> None:
    text = (ROOT / "docs" / "engines.md").read_text()
    assert [engine for engine in ENGINES if f"`{engine}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_docs_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_lead_to_one_of_its_headings(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
    targets = [((page.parent / name) if name else page, anchor) for name, anchor in links]
    assert [(str(to), anchor) for to, anchor in targets if anchor not in _anchors(to)] == []


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tests_named_in_the_docs_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    pages = [(ROOT / "docs" / page).read_text() for page in ("delivery.md", "reliability.md")]
    named = re.findall(r"`(test_[a-z0-9_]+)`", "\n".join(pages))
    assert named
    assert [name for name in named if f"def {name}(" not in sources] == []


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration_page())
    print(states_chart())  # noqa: T201
