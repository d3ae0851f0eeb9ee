"""`turnmill ask` and `turnmill chat`: a conversation in the terminal, through the queue."""

import asyncio
from typing import Annotated
from uuid import UUID

import typer

from turnmill.producer.accept import accept
from turnmill.producer.cli.context import System, TenantOption, open_system
from turnmill.producer.cli.views.console import make_console
from turnmill.producer.cli.views.reply_view import print_reply
from turnmill.producer.cli.views.texts import plain
from turnmill.producer.turns import read_conversation
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.ids import Prefix, parse_id, show_id
from turnmill.schemas.turns import (
    MAX_TOKENS,
    GenerationParams,
    Message,
    Role,
    Turn,
    TurnRequest,
    TurnState,
)

console = make_console()

BotOption = Annotated[
    str | None, typer.Option(help="Which bot; the default model's when left out.")
]
ResumeOption = Annotated[str | None, typer.Option(help="Resume this conversation: conv_…")]


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    bot: BotOption = None,
    conversation: ResumeOption = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS, help="Length of the reply.")
    ] = None,
    tenant: TenantOption = None,
) -> None:
    """Ask one question and print the reply as it comes.

    Example: turnmill ask "Where is my parcel?"
    """
    with open_system(tenant=tenant) as system:
        talk = _Talk(system, bot, _parse(conversation), GenerationParams(max_tokens=max_tokens))
        turn = talk.say(question)
    if turn.state is not TurnState.COMPLETED:
        raise typer.Exit(1)


def chat(
    bot: BotOption = None, conversation: ResumeOption = None, tenant: TenantOption = None
) -> None:
    """Talk with a bot; Ctrl-D ends, and the conversation can be resumed later.

    Example: turnmill chat --conversation conv_01a20a667dde700b9901e3ce4b9ac89c
    """
    with open_system(tenant=tenant) as system:
        talk = _Talk(system, bot, _parse(conversation), GenerationParams())
        talk.show_past()
        while (line := _read_line()) is not None:
            if line.strip():
                talk.say(line)
        talk.show_how_to_resume()


class _Talk:
    """One conversation and what is said in it."""

    def __init__(
        self,
        system: System,
        bot: str | None,
        conversation_id: UUID | None,
        params: GenerationParams,
    ) -> None:
        self._system = system
        self._past: list[Turn] = []
        if conversation_id is not None:
            self._past = read_conversation(system.database, system.tenant_id, conversation_id)
        past_bot = self._past[-1].bot if self._past else None
        self._bot = bot or past_bot or system.settings.engine.model_name
        self._conversation_id = conversation_id
        self._params = params

    def say(self, text: str) -> Turn:
        """Accept one turn and print its reply. Ctrl-C stops watching, not the turn."""
        accepted = accept(
            self._system.database,
            TurnRequest(
                tenant_id=self._system.tenant_id,
                bot=self._bot,
                messages=(Message(role=Role.USER, content=text),),
                params=self._params,
                conversation_id=self._conversation_id,
            ),
        )
        self._conversation_id = accepted.conversation_id
        try:
            return asyncio.run(print_reply(self._system, accepted.turn_id, console))
        except KeyboardInterrupt:
            shown = show_id(Prefix.TURN, accepted.turn_id)
            console.print(
                f"\n[dim]The turn goes on: turnmill turns show {shown}{self._system.suffix}[/]"
            )
            raise typer.Exit(130) from None

    def show_past(self) -> None:
        for turn in self._past:
            last = turn.messages[-1]
            who = "a person:" if last.role is Role.ASSISTANT else "you:"
            console.print(f"[bold]{who}[/]", plain(last.text))
            console.print(plain(turn.reply.content) if turn.reply else f"[dim]{turn.state}[/]")

    def show_how_to_resume(self) -> None:
        if self._conversation_id is not None:
            shown = show_id(Prefix.CONVERSATION, self._conversation_id)
            command = f"turnmill chat --conversation {shown}{self._system.suffix}"
            console.print(f"\n[dim]Resume later: {command}[/]")


def _read_line() -> str | None:
    try:
        return console.input("[bold]you:[/] ")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"Standard input is not valid {error.encoding.upper()}. Convert it first (iconv does)."
        ) from None
    except (EOFError, KeyboardInterrupt):
        return None


def _parse(conversation: str | None) -> UUID | None:
    return None if conversation is None else parse_id(Prefix.CONVERSATION, conversation)
