"""`turnmill bots`: list, show, save, change and delete the tenant's bots."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from turnmill.producer.cli.channels.policies import PolicyOption, read_policies
from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.samples.command import sample
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.formats.files import read_schema, schema_format
from turnmill.schemas.settings import Settings
from turnmill.schemas.turns import GenerationParams

if TYPE_CHECKING:
    from turnmill.producer.bots import BotChange

SchemaOption = Annotated[
    Path | None,
    typer.Option("--schema", help="A JSON Schema: replies meet it, unless a call asks for more."),
]

app = typer.Typer(help="Bots: a model with instructions and defaults.", no_args_is_help=True)
console = make_console()

app.command()(sample)


@app.command("list")
def list_bots(as_json: JsonOption = False, tenant: TenantOption = None) -> None:
    """List the bots.

    Example: turnmill bots list --tenant acme
    """
    from turnmill.producer.tenants import list_bots

    with open_system(tenant=tenant) as system:
        found = list_bots(system.database, system.tenant_id)
    if as_json:
        from turnmill.producer.cli.lists.resources import BotList

        print_json(BotList.of(found))
        return
    table = Listing("name", "version", "model", "parameters", "policies", "instructions")
    for bot in found:
        params = _shown(bot.params)
        policies = bot.policies.model_dump_json(exclude_unset=True)
        columns = (bot.name, str(bot.version), bot.model, params, policies, bot.instructions)
        table.add_row(*map(plain, columns))
    console.print(table)


@app.command("show")
def show_bot(
    name: Annotated[str, typer.Argument(help="The bot.")], tenant: TenantOption = None
) -> None:
    """Show a bot whole.

    Example: turnmill bots show support
    """
    from turnmill.producer.bots import read_bot

    with open_system(tenant=tenant) as system:
        bot = read_bot(system.database, system.tenant_id, name)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "bot": f"{bot.name}, version {bot.version}",
        "model": bot.model,
        "parameters": _shown(bot.params),
        "replies": _format(bot.params),
        "policies": bot.policies.model_dump_json(exclude_unset=True),
        "ignores tools": "yes" if bot.ignores_tools else "no",
        "saved first": bot.created_at.isoformat(timespec="seconds"),
        "instructions": bot.instructions or "-",
    }
    for title, value in rows.items():
        table.add_row(f"[dim]{title}[/]", plain(value))
    console.print(table)


def _shown(params: GenerationParams) -> str:
    """The parameters that are set, without a schema's text."""
    shown = params.model_dump(mode="json", exclude_defaults=True)
    if params.response_format is not None:
        shown["response_format"] = params.response_format.type
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))


def _format(params: GenerationParams) -> str:
    """What replies are held to."""
    format = params.response_format
    return "text" if format is None else format.schema_text or format.type


@app.command("delete")
def delete_bot(
    name: Annotated[str, typer.Argument(help="The bot.")], tenant: TenantOption = None
) -> None:
    """Delete a bot. What was accepted is answered; its conversations stay.

    Example: turnmill bots delete support
    """
    from turnmill.producer.bots import delete_bot

    with open_system(tenant=tenant) as system:
        _refuse_configured(system.settings, tenant or system.settings.tenant, name)
        delete_bot(system.database, system.tenant_id, name)
    console.print(plain(f"Deleted. 'turnmill bots save {name}' would bring it back."))


def _refuse_configured(settings: Settings, tenant: str, name: str) -> None:
    """Raises `InvalidInput`: the next API that starts would save the bot again."""
    from turnmill.schemas.channels.configuration import load_configuration

    configuration = load_configuration(settings.config_path)
    users = [
        channel
        for channel, section in configuration.channels.items()
        if (section.bot, section.tenant) == (name, tenant)
    ]
    if users or name in configuration.bots:
        where = f"the channel {users[0]}" if users else f"[bots.{name}]"
        raise InvalidInput(
            f"{settings.config_path} needs the bot '{name}': remove {where} there first.",
            param="name",
        )


@app.command("save")
def save_bot(
    name: Annotated[str, typer.Argument(help="What API clients send as `model`.")],
    model: Annotated[str | None, typer.Option(help="The workers' model.")] = None,
    instructions: Annotated[str, typer.Option(help="The system message.")] = "",
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0: always the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0001, max=1, help="Draw from the likeliest tokens whose chances add up to this."
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the replies.")] = None,
    schema: SchemaOption = None,
    ignore_tools: Annotated[
        bool,
        typer.Option("--ignore-tools", help="Answer calls that offer tools without using them."),
    ] = False,
    policy: PolicyOption = None,
    tenant: TenantOption = None,
) -> None:
    """Create a bot, or change it from its next turn on. Without --policy it keeps its policies.

    Example: turnmill bots save support --instructions "You answer for ACME Parcels."

    Example: turnmill bots save triage --schema triage.json

    Example: turnmill bots save support --policy double_texting=interrupt
    --policy hands_off_failures=true
    """
    from turnmill.producer.api.served import served_models
    from turnmill.producer.tenants import save_bot

    params = GenerationParams(
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        response_format=None if schema is None else schema_format(read_schema(schema)),
    )
    with open_system(tenant=tenant) as system:
        save_bot(
            system.database,
            system.tenant_id,
            name,
            model or system.settings.engine.model_name,
            instructions,
            params,
            ignores_tools=ignore_tools,
            policies=read_policies(policy) if policy else None,
        )
        served = served_models(system.database)
    console.print(plain(f"Saved. Clients use it as model='{name}'."))
    _note_unserved(model or system.settings.engine.model_name, served)


@app.command("change")
def change_bot(
    name: Annotated[str, typer.Argument(help="The bot.")],
    model: Annotated[str | None, typer.Option(help="The workers' model.")] = None,
    instructions: Annotated[str | None, typer.Option(help="The system message.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help='A parameter (repeatable): temperature=0.2, max_tokens=300, stop=["END"].',
        ),
    ] = None,
    reset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A parameter to take back to its default (repeatable)."),
    ] = None,
    schema: SchemaOption = None,
    ignore_tools: Annotated[
        bool | None,
        typer.Option(
            "--ignore-tools/--heed-tools",
            help="Whether calls that offer tools are answered without using them.",
        ),
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Change a bot in part, from its next turn on. What is left out stays.

    Example: turnmill bots change support --set temperature=0.2 --set max_tokens=300

    Example: turnmill bots change support --reset temperature

    Example: turnmill bots change triage --schema triage.json
    """
    from turnmill.producer.api.served import served_models
    from turnmill.producer.bots import change_bot

    given = [*(set_ or ())]
    if schema is not None:
        named = {"schema": json.loads(read_schema(schema))}
        asked = {"type": "json_schema", "json_schema": named}
        given.append(f"response_format={json.dumps(asked)}")
    change = _read_change(model, instructions, given, reset or ())
    change = change.model_copy(update={"ignores_tools": ignore_tools})
    with open_system(tenant=tenant) as system:
        bot = change_bot(system.database, system.tenant_id, name, change)
        served = served_models(system.database)
    params = _shown(bot.params)
    console.print(plain(f"Version {bot.version} of '{bot.name}' has the parameters {params}."))
    _note_unserved(bot.model, served)


def _note_unserved(model: str, served: Sequence[str]) -> None:
    """Say that nobody serves a bot's model, where workers live that could."""
    if served and model not in served:
        console.print(
            plain(
                f"No worker serves the model '{model}' now; they serve {', '.join(served)}. "
                "Calls are answered 503 until one does."
            ),
            style="yellow",
        )


def _read_change(
    model: str | None, instructions: str | None, given: Sequence[str], reset: Sequence[str]
) -> "BotChange":
    """Read the options of `bots change`. Raises `InvalidInput`."""
    from turnmill.producer.bots import BotChange, ParamsChange

    params: dict[str, object] = dict.fromkeys(reset)
    for pair in given:
        name, is_pair, value = pair.partition("=")
        if not is_pair:
            raise InvalidInput(f"'{pair[:80]}' sets no parameter. Write NAME=VALUE.", param="set")
        if name in params:
            raise InvalidInput(f"'{name[:80]}' is given twice.", param="set")
        params[name] = _value(value)
    if unknown := params.keys() - ParamsChange.model_fields.keys():
        known = ", ".join(ParamsChange.model_fields)
        raise InvalidInput(f"'{min(unknown)[:80]}' is no parameter of a bot. Known: {known}.")
    try:
        return BotChange.model_validate(
            {"model": model, "instructions": instructions, "params": params}
        )
    except ValidationError as error:
        mistakes = error.errors(include_input=False, include_url=False)
        lines = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}." for each in mistakes)
        raise InvalidInput(" ".join(lines), param="set") from None


def _value(text: str) -> object:
    """Read a value as JSON, or as the text that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
