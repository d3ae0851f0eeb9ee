"""What would keep an engine from starting, told before anything is started."""

from rich.console import Console

from turnmill.producer.cli.views.texts import plain
from turnmill.schemas.settings import Settings


def check_engine(settings: Settings, console: Console) -> None:
    """Show what is doubtful.

    Raises:
        SettingsError: what the engine lacks, all of it.
    """
    from turnmill.workers.engines.checks import refuse_unusable

    engine = settings.engine.model_copy(update={"models_dir": settings.models_dir})
    for warning in refuse_unusable(engine):
        console.print(plain(warning), style="yellow")
