"""Lists of what the API shows one by one, in the same shapes.

It imports the API's framework, so a command imports it when `--json` is asked for.
"""

from typing import Self

from pydantic import BaseModel

from turnmill.producer.api.resources.bots import BotBody
from turnmill.producer.api.resources.users import UserBody
from turnmill.producer.memory.users import User
from turnmill.producer.tenants import Bot


class BotList(BaseModel):
    bots: list[BotBody]

    @classmethod
    def of(cls, bots: list[Bot]) -> Self:
        """Show the bots."""
        return cls(bots=[BotBody.of(each) for each in bots])


class UserPage(BaseModel):
    users: list[UserBody]
    #: What `--after` takes for the next page.
    next: str | None

    @classmethod
    def of(cls, found: list[User], limit: int) -> Self:
        """Show up to `limit` users. One more that was found says that there is a next page."""
        page = found[:limit]
        following = page[-1].key if len(found) > limit else None
        return cls(users=[UserBody.of(each) for each in page], next=following)
