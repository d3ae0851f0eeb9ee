"""Models and errors in OpenAI's shapes."""

from typing import Literal

from pydantic import (
    BaseModel,
    Field,
)


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "turnmill"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    turn_id: str | None = Field(default=None, description="The turn it is about, if accepted.")


class ErrorBody(BaseModel):
    """Every error looks like this."""

    error: ErrorDetail
