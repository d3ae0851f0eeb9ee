"""The documentation is true: what it lists is what there is.

`python tests/unit/test_docs.py` writes docs/configuration.md anew and prints the states chart.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"

#: Above a block of commands that readers of the Chinese page alone need, such as mirrors.
ONLY_HERE = "<!-- 只有中文版需要 -->\n"

IN_STEP = "README.md and README.zh-CN.md differ: change both."

_BLOCK = re.compile(r"^(" + re.escape(ONLY_HERE) + r")?```(\w*)\n(.*?)^```$", re.M | re.S)
_COMMENT = re.compile(r"\s+# .*$", re.M)
#: A call of ours, up to what ends it in a shell.
_COMMAND = re.compile(r"(?:^|(?<=[\s(]))turnmill ([^|>;&#`]*)")
_OPTION = re.compile(r"--?[a-z][\w-]*(=.*)?")
_QUOTED = re.compile(r'"[^"\n]*"')
#: A text that a user or an operator says, in either language.
_SAYING = re.compile(r"[ \u4e00-\u9fff]")

INTRODUCTION = """\
# Configuration

Every setting is an environment variable. Lists are JSON (`TURNMILL_WORKER__LANES='["batch"]'`).
An empty variable counts as not given. A variable that begins with `TURNMILL_` and is not listed
here is an error, but for those that Kubernetes derives from the names of Services. While an
embedded stack runs, its data folder's `stack.json` fills in where things listen; variables win.

Of libpq's variables those of authentication and TLS count (`PGPASSFILE`, `PGPASSWORD`, `PGSSL…`,
`PGREQUIREAUTH`, `PGCHANNELBINDING`, `PGKRBSRVNAME`, `PGGSSLIB`) where the URL leaves them open, but
never for the embedded PostgreSQL; the others, Celery's and Flower's are ignored or refused.
Variables of proxies (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`) count for engines, embedders, the
transcriber, the model hub, S3 and Slack's socket mode, but never for this machine itself. Channels,
web search and RabbitMQ's management API are called directly. SOCKS proxies need `pip install
socksio`; S3 and Slack's socket mode take none.

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
    for page in ROOT.glob("README*.md"):
        assert f"```mermaid\n{states_chart()}\n```" in page.read_text()


def test_every_setting_named_in_the_docs_exists() -> None:
    known = set(variable_names())
    for page in PAGES:
        named = set(re.findall(r"TURNMILL_[A-Z0-9_]+[A-Z0-9]", page.read_text()))
        assert named <= known, page


def test_every_command_is_in_the_docs() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"(turnmill|make) {name}\b|`{name}`", text), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_have_the_options_that_they_are_shown_with(page: Path) -> None:
    lines = (line for _, block in _blocks(page) for line in block.replace("\\\n", " ").splitlines())
    unknown = [
        f"{line.strip()}: {option}"
        for line in lines
        for words in _COMMAND.findall(line)
        for option in _unknown_options(words.split())
    ]
    assert unknown == []


def _unknown_options(words: list[str]) -> list[str]:
    """Options of a command line that its command does not have."""
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]
    known = {
        "--help",
        *(name for each in command.params for name in (*each.opts, *each.secondary_opts)),
    }
    given = (
        word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)
    )
    return [option for option in given if option not in known]


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
    return {_anchor(heading) for heading in _headings(page)}


def _anchor(heading: str) -> str:
    text = heading.lstrip("#").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def test_tests_named_in_the_docs_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    pages = [(ROOT / "docs" / page).read_text() for page in ("delivery.md", "reliability.md")]
    named = re.findall(r"`(test_[a-z0-9_]+)`", "\n".join(pages))
    assert named
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_both_readmes_have_the_same_commands() -> None:
    assert _blocks(ENGLISH) == _blocks(CHINESE), IN_STEP


def test_both_readmes_have_the_same_links() -> None:
    assert set(_links(ENGLISH)) == set(_links(CHINESE)), IN_STEP


def test_both_readmes_have_the_same_sections() -> None:
    levels = [[len(heading.split()[0]) for heading in _headings(p)] for p in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1], IN_STEP


def test_each_readme_links_to_the_other_above_the_first_sentence() -> None:
    for page, other in ((ENGLISH, CHINESE), (CHINESE, ENGLISH)):
        assert f"]({other.name})" in "\n".join(page.read_text().splitlines()[:3])


def test_the_chinese_readme_names_chinese_channels_first_and_leads_to_chinese_pages() -> None:
    text = CHINESE.read_text()
    assert max(text.index(name) for name in ("飞书", "钉钉", "企业微信", "微信")) < text.index(
        "Slack"
    )
    translated = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.zh-CN.md")}
    assert [page for page in sorted(translated) if f"]({page})" not in text] == []


def _blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each block, without comments and sayings; a drawing has no words."""
    found = _BLOCK.findall(page.read_text())
    return [
        (language, _QUOTED.sub(_mask, _COMMENT.sub("", content)) if language else "")
        for only_here, language, content in found
        if not only_here
    ]


def _mask(quoted: re.Match[str]) -> str:
    return '"…"' if _SAYING.search(quoted[0]) else quoted[0]


def _prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text())


def _headings(page: Path) -> list[str]:
    return re.findall(r"^#+ .+$", _prose(page), re.M)


def _links(page: Path) -> Iterator[str]:
    """Targets: a page in another language counts as the same, a section by its number."""
    numbers = {_anchor(heading): n for n, heading in enumerate(_headings(page))}
    for target in re.findall(r"\]\(([^)]+)\)", _prose(page)):
        if target.startswith("#"):
            yield f"section {numbers[target[1:]]}"
        else:
            yield target.replace(".zh-CN", "")


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration_page())
    print(states_chart())  # noqa: T201
