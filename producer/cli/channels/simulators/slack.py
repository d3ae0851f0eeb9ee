"""A message as Slack would send it."""

from turnmill.infra.mocks.slack.events import sign_callback
from turnmill.infra.mocks.slack.payloads import Workspace
from turnmill.producer.cli.channels.simulators.base import Simulated, console
from turnmill.schemas.channels.sections.slack import SlackSection
from turnmill.schemas.errors import SettingsError


def simulate_slack(section: SlackSection, text: str, thread: str | None) -> Simulated:
    if section.signing_secret is None:
        raise SettingsError("The channel has no signing_secret, so it takes no requests.")
    workspace = Workspace()
    fields = {} if thread is None else {"thread_ts": thread}
    callback = workspace.callback(workspace.mention(text, **fields))
    secret = section.signing_secret.read().get_secret_value()
    if thread is None:
        again = f"--thread {callback['event']['ts']}"
        console.print(f"[dim]A new thread; continue it with {again}[/]")
    return Simulated(sign_callback(secret, callback), callback["event_id"])
