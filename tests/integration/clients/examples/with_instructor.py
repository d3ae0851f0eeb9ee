"""instructor's own example, by tools and by a schema.

https://python.useinstructor.com/concepts/patching
"""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel


class User(BaseModel):
    name: str
    age: int


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(max_retries=0), mode=mode)
    user = client.chat.completions.create(
        model=os.environ["MODEL"],
        response_model=User,
        max_retries=0,
        messages=[{"role": "user", "content": "Extract: John Doe is 30 years old."}],
    )
    assert isinstance(user, User), (mode, user)
