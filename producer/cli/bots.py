"""`turnmill bots`: list, save and change the tenant's bots."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from turnmill.producer.cli.channels.policies import PolicyOption, read_policies
from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import GenerationParams

if TYPE_CHECKING:
    from turnmill.producer.bots import BotChange

app = typer.Typer(help="Bots: a model with instructions and defaults.", no_args_is_help=True)
console = make_console()


@app.command("list")
def list_bots(tenant: TenantOption = None) -> None:
    """List the bots.

    Example: turnmill bots list --tenant acme
    """
    from turnmill.producer.tenants import list_bots

    table = Table("name", "version", "model", "parameters", "policies", "instructions")
    table.columns[0].overflow = table.columns[2].overflow = "fold"
    with open_system(tenant=tenant) as system:
        for bot in list_bots(system.database, system.tenant_id):
            params = bot.params.model_dump_json(exclude_defaults=True)
            policies = bot.policies.model_dump_json(exclude_unset=True)
            columns = (bot.name, str(bot.version), bot.model, params, policies, bot.instructions)
            table.add_row(*map(plain, columns))
    console.print(table)


@app.command("save")
def save_bot(
    name: Annotated[str, typer.Argument(help="What API clients send as `model`.")],
    model: Annotated[str | None, typer.Option(help="The workers' model.")] = None,
    instructions: Annotated[str, typer.Option(help="The system message.")] = "",
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0001, max=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    ignore_tools: Annotated[
        bool,
        typer.Option("--ignore-tools", help="Answer calls that offer tools without using them."),
    ] = False,
    policy: PolicyOption = None,
    tenant: TenantOption = None,
) -> None:
    """Create a bot, or change it from its next turn on. Without --policy it keeps its policies.

    Example: turnmill bots save support --instructions "You answer for ACME Parcels."

    Example: turnmill bots save support --policy double_texting=interrupt
    --policy hands_off_failures=true
    """
    from turnmill.producer.tenants import save_bot

    params = GenerationParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
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
    console.print(plain(f"Saved. Clients use it as model='{name}'."))


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
    tenant: TenantOption = None,
) -> None:
    """Change a bot in part, from its next turn on. What is left out stays.

    Example: turnmill bots change support --set temperature=0.2 --set max_tokens=300

    Example: turnmill bots change support --reset temperature
    """
    from turnmill.producer.bots import change_bot

    change = _read_change(model, instructions, set_ or (), reset or ())
    with open_system(tenant=tenant) as system:
        bot = change_bot(system.database, system.tenant_id, name, change)
    params = bot.params.model_dump_json(exclude_defaults=True)
    console.print(plain(f"Version {bot.version} of '{bot.name}' has the parameters {params}."))


def _read_change(
    model: str | None, instructions: str | None, given: Sequence[str], reset: Sequence[str]
) -> "BotChange":
    """Read the options of `bots change`. Raises `InvalidInput`."""
    from turnmill.producer.bots import BotChange, ParamsChange

    params: dict[str, Any] = dict.fromkeys(reset)
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
