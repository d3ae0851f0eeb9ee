"""`turnmill.toml`: what it may say, and what a mistake in it is answered with."""

from pathlib import Path

import pytest

from turnmill.schemas.channels import loading
from turnmill.schemas.channels.configuration import load_configuration
from turnmill.schemas.channels.policies import CHANNEL_POLICIES, DoubleTexting
from turnmill.schemas.channels.sections.base import SecretReference
from turnmill.schemas.channels.sections.registry import SECTIONS
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.channels.toml_lines import TOMLLines
from turnmill.schemas.channels.unknown import Step
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import load_settings

SECRET = "hunter2hunter2"  # noqa: S105 - stands for one

KINDS = ", ".join(SECTIONS)

GOOD = """
[bots.support]
instructions = "You answer for ACME Parcels."
params = { temperature = 0.2 }

[bots.support.policies]
double_texting = "interrupt"
texts.stopped = "Done."

[channels.acme-slack]
kind = "slack"
bot = "support"
signing_secret = { env = "SLACK_SIGNING_SECRET" }
bot_token = { file = "secrets/token" }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turnmill.toml"


def refusal_of(file: Path, content: str) -> str:
    file.write_text(content)
    with pytest.raises(SettingsError) as refused:
        load_configuration(file)
    return refused.value.message


def test_bots_and_channels_are_read(file: Path) -> None:
    file.write_text("\ufeff" + GOOD)
    configuration = load_configuration(file)
    bot, channel = configuration.bots["support"], configuration.channels["acme-slack"]
    policies = bot.policies.over(CHANNEL_POLICIES)
    assert isinstance(channel, SlackSection)
    assert (channel.bot, channel.tenant) == ("support", "default")
    assert (policies.double_texting, policies.texts.stopped) == (DoubleTexting.INTERRUPT, "Done.")


def test_a_bot_s_replies_are_held_to_a_schema_in_a_file_beside_this_one(file: Path) -> None:
    schema = file.with_name("triage.json")
    schema.write_text('{"type": "object", "properties": {"b": {}, "a": {"enum": ["x"]}}}')
    file.write_text('[bots.triage]\nschema = "triage.json"\nparams = { temperature = 0.2 }\n')
    params = load_configuration(file).bots["triage"].params
    assert params.temperature == 0.2
    assert params.response_format is not None
    assert params.response_format.schema_text == schema.read_text()
    schema.write_text('{"type": "object", "properties": {"a": {"not": {}}}}')
    with pytest.raises(SettingsError, match=r"line 1: bots.triage: .*properties\.a\.not"):
        load_configuration(file)
    schema.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        load_configuration(file)
    assert "Did you mean schema?" in refusal_of(file, '[bots.triage]\nschemas = "triage.json"')


def test_a_bots_ladder_is_a_table_of_its_policies(file: Path) -> None:
    table = '[bots.support.policies.unknown]\nsteps = ["clarify", "search", "uncertain"]\n'
    file.write_text(GOOD + table)
    policies = load_configuration(file).bots["support"].policies
    assert policies.unknown.steps == (Step.CLARIFY, Step.SEARCH, Step.UNCERTAIN)


def test_without_a_file_there_are_no_channels() -> None:
    assert load_configuration(None).channels == {}


@pytest.mark.parametrize(
    ("wrong", "line", "sentence"),
    [
        (("bot_token", "bot_tokn"), 14, "bot_tokn: is not known. Did you mean bot_token?"),
        (("[channels.", "[channel."), 10, "channel: is not known. Did you mean channels?"),
        (('"slack"', '"slak"'), 11, f"kind: is none of the known kinds: {KINDS}. Did you"),
        (('kind = "slack"\n', ""), 10, f"kind: is missing; it is one of: {KINDS}"),
        (('bot = "support"\n', ""), 10, "channels.acme-slack.bot: Field required"),
        (("double_texting", "doubletexting"), 7, "Did you mean double_texting?"),
        (("stopped", "stoped"), 8, "texts.stoped: is not known. Did you mean stopped?"),
        (("temperature", "temprature"), 4, "params.temprature: is not known. Did you mean temp"),
        (("instructions", "instruction"), 3, "Did you mean instructions?"),
        (('"interrupt"', '"never"'), 7, "double_texting: Input should be 'enqueue'"),
        (("{ env =", "{ en ="), 13, "signing_secret.en: is not known. Did you mean env?"),
        (("acme-slack", "'Acme Slack'"), 10, "Acme Slack: String should match pattern"),
        (("acme-slack", "api"), 10, "channels.api: has the name of the API"),
        (('kind = "slack"', "kind = 1"), 11, "kind: is none of the known"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_was_meant(
    file: Path, wrong: tuple[str, str], line: int, sentence: str
) -> None:
    refusal = refusal_of(file, GOOD.replace(*wrong, 1))
    assert str(file) in refusal
    assert any(f"line {line}: " in each and sentence in each for each in refusal.splitlines())


def test_all_mistakes_are_named_at_once_in_the_order_of_their_lines(file: Path) -> None:
    wrong = GOOD.replace("bot_token", "token").replace("instructions", "prompt")
    lines = refusal_of(file, wrong).splitlines()[1:]
    assert [line.split(": ")[:2] for line in lines] == [
        ["  line 3", "bots.support.prompt"],
        ["  line 10", "channels.acme-slack.bot_token"],
        ["  line 14", "channels.acme-slack.token"],
    ]


def test_a_secret_in_the_file_is_refused_and_not_shown(file: Path) -> None:
    wrong = GOOD.replace('{ env = "SLACK_SIGNING_SECRET" }', f'"{SECRET}"')
    refusal = refusal_of(file, wrong)
    assert "line 13: channels.acme-slack.signing_secret: is a secret" in refusal
    assert SECRET not in refusal


def test_a_broken_file_is_refused_with_the_parsers_line_and_no_value(file: Path) -> None:
    refusal = refusal_of(file, f'[channels.a]\nkind = "slack"\nbot_token = {SECRET}\n')
    assert "line 3" in refusal
    assert SECRET not in refusal


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: No such file"):
        load_configuration(file)
    file.write_bytes("title = 'ü'".encode("latin-1"))
    with pytest.raises(SettingsError, match="cannot be read: it is not UTF-8"):
        load_configuration(file)


def test_slack_without_a_way_in_is_refused(file: Path) -> None:
    wrong = GOOD.replace('signing_secret = { env = "SLACK_SIGNING_SECRET" }\n', "")
    assert "needs signing_secret" in refusal_of(file, wrong)


def test_secrets_come_from_variables_or_files_beside_the_configuration(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(GOOD)
    channel = load_configuration(file).channels["acme-slack"]
    assert isinstance(channel, SlackSection)
    assert isinstance(channel.signing_secret, SecretReference)
    monkeypatch.setenv("SLACK_SIGNING_SECRET", f"{SECRET}\n")
    (file.parent / "secrets").mkdir()
    (file.parent / "secrets" / "token").write_text(f" {SECRET}\r\n")
    for reference in (channel.signing_secret, channel.bot_token):
        assert reference.read().get_secret_value() == SECRET
        assert SECRET not in repr(reference.read())


def test_a_secret_that_is_missing_is_named_by_its_place(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLACK_SIGNING_SECRET", raising=False)
    with pytest.raises(SettingsError, match=r"variable SLACK_SIGNING_SECRET, .* is empty"):
        SecretReference(env="SLACK_SIGNING_SECRET").read()
    with pytest.raises(SettingsError, match=r"cannot be read: No such file"):
        SecretReference(file=file).read()


def test_lines_are_found_however_a_key_is_written() -> None:
    text = '# note\n[a]\nb.c = """\nd = 1\n"""\n[[a.e]]\nf = [\n  1,\n]\n"a.b".c = { "x y" = 1 }\n'
    lines = TOMLLines(text)
    assert lines.line_of(("a",)) == 2
    assert lines.line_of(("a", "b", "c")) == 3
    assert lines.line_of(("a", "e", 0, "f")) == 7
    assert lines.line_of(("a", "e", 0, "a.b", "c", "x y")) == 10
    assert lines.line_of(("a", "b", "missing")) == 3
    assert lines.line_of(("nowhere",)) == 1


def test_the_file_is_the_one_that_is_named_or_that_of_the_data_folder(tmp_path: Path) -> None:
    assert load_settings(data=tmp_path).config_path is None
    (tmp_path / "turnmill.toml").touch()
    assert load_settings(data=tmp_path).config_path == tmp_path / "turnmill.toml"
    named = tmp_path / "another.toml"
    assert load_settings(data=tmp_path, config=named).config_path == named


def test_what_is_made_of_secrets_is_made_anew_once_their_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOOK_EVERY_S", 0.0)
    monkeypatch.setenv("SLACK_SIGNING_SECRET", "first")
    token = tmp_path / "token"
    token.write_text("one")
    section = SlackSection(
        kind="slack",
        bot="support",
        signing_secret=SecretReference(env="SLACK_SIGNING_SECRET"),
        bot_token=SecretReference(file=token),
    )
    made: list[str] = []

    def make() -> str:
        made.append(section.bot_token.read().get_secret_value())
        return made[-1]

    renewed = loading.Renewed("acme", section, make)
    assert (renewed.get(), renewed.get(), made) == ("one", "one", ["one"])
    token.write_text("")
    assert renewed.get() == "one", "as it is while somebody writes it"
    token.unlink()
    assert renewed.get() == "one"
    token.write_text("two")
    assert (renewed.get(), renewed.get(), made) == ("two", "two", ["one", "two"])
