"""pydantic-ai's own examples of a tool and of structured output.

https://ai.pydantic.dev/tools and https://ai.pydantic.dev/output
"""

import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(os.environ["MODEL"], provider=OpenAIProvider())


class CityLocation(BaseModel):
    city: str
    country: str


for output_type in (CityLocation, NativeOutput(CityLocation)):
    agent = Agent(model, output_type=output_type)
    result = agent.run_sync("Where were the olympics held in 2012?")
    assert isinstance(result.output, CityLocation), result
    assert result.usage.output_tokens > 0

rolls: list[int] = []
player = Agent(model, instructions="You're a dice game: roll the die and tell the number.")


@player.tool_plain
def roll_dice() -> str:
    """Roll a six-sided die and return the result."""
    rolls.append(4)
    return "4"


said = player.run_sync("My guess is 4 [[call=roll_dice]]")
assert rolls == [4]
assert said.output == "4", said
