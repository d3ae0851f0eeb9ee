"""LangChain's own examples of structured output and of tools.

https://docs.langchain.com/oss/python/integrations/chat/openai
"""

import os
from typing import Annotated

from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

llm = ChatOpenAI(model=os.environ["MODEL"], max_retries=0)


class Joke(BaseModel):
    """Joke to tell user."""

    setup: str = Field(description="The setup of the joke")
    punchline: str = Field(description="The punchline to the joke")
    rating: int | None = Field(default=None, description="How funny the joke is, from 1 to 10")


@tool
def multiply(a: Annotated[int, "First integer"], b: Annotated[int, "Second integer"]) -> int:
    """Multiply two integers."""
    return a * b


for method in ("json_schema", "function_calling"):
    joke = llm.with_structured_output(Joke, method=method).invoke("Tell me a joke about cats")
    assert isinstance(joke, Joke), (method, joke)

raw = llm.with_structured_output(Joke, include_raw=True).invoke("Tell me a joke about cats")
assert raw["parsing_error"] is None
assert isinstance(raw["parsed"], Joke)

llm_with_tools = llm.bind_tools([multiply])
messages = [HumanMessage('What is 3 * 12? [[call=multiply {"a": 3, "b": 12}]]')]
answer = llm_with_tools.invoke(messages)
[call] = answer.tool_calls
assert (call["name"], call["args"]) == ("multiply", {"a": 3, "b": 12}), answer
result = multiply.invoke(call)
assert isinstance(result, ToolMessage)
final = llm_with_tools.invoke([*messages, answer, result])
assert final.content == "36", final
assert final.tool_calls == []

gathered: AIMessageChunk | None = None
for chunk in llm_with_tools.stream(messages):
    gathered = chunk if gathered is None else gathered + chunk
assert gathered is not None
assert [(each["name"], each["args"]) for each in gathered.tool_calls] == [
    ("multiply", {"a": 3, "b": 12})
], gathered

forced = llm.bind_tools([multiply], tool_choice="multiply").invoke("Hello")
assert [each["name"] for each in forced.tool_calls] == ["multiply"], forced
