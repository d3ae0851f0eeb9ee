"""`turnmill conversations`: what was said in one, and the people who answer instead of the bot."""

from typing import Annotated

import typer
from rich.table import Table

from turnmill.producer.channels.deliveries import failed_of
from turnmill.producer.cli.channels.policies import PolicyOption, read_policies
from turnmill.producer.cli.context import TenantOption, open_system
from turnmill.producer.cli.lists.printing import JsonOption, print_json
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.listing import Listing
from turnmill.producer.cli.views.reply_view import print_sources
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.cli.views.turns_view import delivered
from turnmill.producer.conversations import read_state, set_policies
from turnmill.producer.handoff import ASKED_BY_OPERATOR, answer, hand_off, resume
from turnmill.producer.operations.handed_off import HandedOffPage, Place, list_handed_off
from turnmill.producer.turns import read_conversation
from turnmill.schemas.ids import Prefix, parse_id
from turnmill.schemas.turns import Turn

app = typer.Typer(
    help="Conversations, and the people who answer them instead of bots.", no_args_is_help=True
)
console = make_console()

ConversationId = Annotated[str, typer.Argument(help="conv_… as `conversations list` shows it.")]


@app.command("list")
def show_list(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Conversations shown.")] = 50,
    after: Annotated[
        str | None, typer.Option(help="The next page, as the page before names it.")
    ] = None,
    as_json: JsonOption = False,
    tenant: TenantOption = None,
) -> None:
    """List the conversations that people answer, those first that were handed off first.

    Example: turnmill conversations list --limit 10
    """
    start = None if after is None else Place.parse(after)
    with open_system(tenant=tenant) as system:
        page = list_handed_off(system.database, system.tenant_id, limit=limit, after=start)
        suffix = system.suffix
    if as_json:
        print_json(page)
        return
    console.print(_table(page) if page.conversations else "No conversation is handed off.")
    if page.next is not None:
        more = f"More: turnmill conversations list --after {page.next}{suffix}"
        console.print(plain(more), soft_wrap=True)


@app.command()
def show(conversation_id: ConversationId, tenant: TenantOption = None) -> None:
    """Show what was said in a conversation, who answers it, and what did not reach its channel.

    Example: turnmill conversations show conv_01a20a667dde743da35d0f8a02aa55e1
    """
    wanted = parse_id(Prefix.CONVERSATION, conversation_id)
    with open_system(tenant=tenant) as system:
        state = read_state(system.database, system.tenant_id, wanted)
        turns = read_conversation(system.database, system.tenant_id, wanted)
        ids = [turn.turn_id for turn in turns]
        failed = failed_of(system.database, system.tenant_id, wanted, ids)
        ways = [delivered(each, system.suffix) for each in failed]
    for turn in turns:
        _show_turn(turn)
    for (text, remedy), each in zip(ways, failed, strict=True):
        what = "A reply" if each.turn_id else "A notice or an answer of a person"
        console.print(plain(f"{what} {text}"), soft_wrap=True)
        console.print(plain(f"→ {remedy}"), soft_wrap=True)
    if state.handed_off_at is not None:
        since = f"{state.handed_off_at:%Y-%m-%d %H:%M}"
        console.print(plain(f"A person answers since {since}: {state.handed_off_because}"))
    if state.policies:
        console.print(plain(f"Policies of its own: {state.policies}"), soft_wrap=True)


@app.command("hand-off")
def hand_over(
    conversation_id: ConversationId,
    reason: Annotated[str, typer.Option(help="Why, for those who look.")] = ASKED_BY_OPERATOR,
    tenant: TenantOption = None,
) -> None:
    """Let a person answer: the open turns end, and the bot sends nothing more.

    Example: turnmill conversations hand-off conv_01a20a667dde743da35d0f8a02aa55e1
    --reason "A complaint."
    """
    wanted = parse_id(Prefix.CONVERSATION, conversation_id)
    with open_system(tenant=tenant) as system:
        hand_off(system.database, system.tenant_id, wanted, reason)
        suffix = system.suffix
    hint = f'Handed off. Answer: turnmill conversations answer {conversation_id} "…"{suffix}'
    console.print(plain(hint), soft_wrap=True)


@app.command("answer")
def answer_as_person(
    conversation_id: ConversationId,
    text: Annotated[str, typer.Argument(help="What the user is told.")],
    author: Annotated[str, typer.Option(help="Who answers.")] = "operator",
    tenant: TenantOption = None,
) -> None:
    """Answer as a person; it is sent to the thread that the user writes from.

    Example: turnmill conversations answer conv_01a20a667dde743da35d0f8a02aa55e1
    "Your parcel is on its way." --author ada
    """
    wanted = parse_id(Prefix.CONVERSATION, conversation_id)
    with open_system(tenant=tenant) as system:
        answer(system.database, system.tenant_id, wanted, text, author)
    console.print("Answered.")


@app.command("resume")
def resume_bot(conversation_id: ConversationId, tenant: TenantOption = None) -> None:
    """Let the bot answer again, from the next message on, with all that was said.

    Example: turnmill conversations resume conv_01a20a667dde743da35d0f8a02aa55e1
    """
    wanted = parse_id(Prefix.CONVERSATION, conversation_id)
    with open_system(tenant=tenant) as system:
        was_handed_off = resume(system.database, system.tenant_id, wanted)
    console.print("The bot answers again." if was_handed_off else "The bot answers it already.")


@app.command("set")
def set_own_policies(
    conversation_id: ConversationId, policy: PolicyOption = None, tenant: TenantOption = None
) -> None:
    """Give a conversation policies over its bot's; without --policy, take them back.

    Example: turnmill conversations set conv_01a20a667dde743da35d0f8a02aa55e1
    --policy double_texting=reject
    """
    wanted = parse_id(Prefix.CONVERSATION, conversation_id)
    policies = read_policies(policy) if policy else None
    with open_system(tenant=tenant) as system:
        set_policies(system.database, system.tenant_id, wanted, policies)
    console.print("Set." if policies else "Its bot's policies count again.")


def _table(page: HandedOffPage) -> Table:
    table = Listing("conversation", "bot", "since", "turns", "channel", "because")
    for each in page.conversations:
        since = f"{each.handed_off_at:%Y-%m-%d %H:%M}"
        cells = (each.bot, since, str(each.turn_count), each.channel or "api", each.because)
        table.add_row(each.conversation_id, *map(plain, cells))
    return table


def _show_turn(turn: Turn) -> None:
    for message in turn.messages:
        who = f"{message.role} ({turn.author})" if turn.author else str(message.role)
        console.print(plain(f"{who}: {message.text}"), soft_wrap=True)
    if turn.reply is not None:
        console.print(plain(f"bot: {turn.reply.content}"), soft_wrap=True)
        print_sources(turn, console)
    else:
        console.print(f"[dim]{turn.state}[/]")
