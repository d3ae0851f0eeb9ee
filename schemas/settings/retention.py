"""How long what is kept."""

from typing import Annotated

from pydantic import (
    Field,
)

from turnmill.schemas.settings.section import Section

#: More would be before 1970, where no id reaches.
Days = Annotated[int, Field(ge=1, le=10_000)]


class RetentionSettings(Section):
    #: Days that a conversation's turns and replies are kept after they ended; for ever when left
    #: out. Open turns stay, whatever their age.
    turns_days: Days | None = None
    #: Days that parked turns are kept; as long as other turns when left out.
    parked_days: Days | None = None
    #: Days that a batch is kept, with its turns and replies, after the last of them ended; as
    #: long as other turns when left out.
    batches_days: Days | None = None
    #: Days that attempts are kept, at least: they go by whole months. With their turn they go
    #: in any case.
    attempts_days: Days | None = 30
    #: Days that uploaded files are kept; until somebody deletes them when left out. One that asks
    #: for a shorter life has it.
    files_days: Days | None = None
    #: Days that images and sounds of messages are kept after the last message with them; as long
    #: as turns when that is shorter. Transcripts and texts of images stay with their turns.
    media_days: Days = 30
    #: How often each worker looks for what is older.
    every_s: float = Field(default=3600.0, gt=0)

    @property
    def kept_media_days(self) -> int:
        return min(self.media_days, self.turns_days or self.media_days)

    @property
    def kept_parked_days(self) -> int | None:
        return self.turns_days if self.parked_days is None else self.parked_days

    @property
    def kept_batches_days(self) -> int | None:
        return self.turns_days if self.batches_days is None else self.batches_days

    @property
    def kept_replies_days(self) -> int | None:
        """After these, a month may be without replies."""
        days = [days for days in (self.turns_days, self.batches_days) if days is not None]
        return min(days, default=None)
