"""Where the list of forgotten users is kept outside the database."""

from pathlib import Path

from turnmill.schemas.settings.section import Section


class MemorySettings(Section):
    #: A file with a line (a hash and a time) for each forgotten user, whom workers forget again
    #: after a restore of an older backup; `erasures.jsonl` in the data folder when left out. It
    #: must outlive the database.
    ledger: Path | None = None
