"""Requests and answers of a server, as its OpenAPI page shows them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr


ItemId = StrictInt | StrictStr
History = Annotated[list[ItemId], Field(description="raw item ids, oldest first; may be empty", examples=[["a", "b"]])]
Timestamps = Annotated[list[StrictInt] | None, Field(description="Unix seconds of the events of the history")]
ModelName = Annotated[StrictStr | None, Field(description="one of GET /models; the first of them by default")]


class Request(BaseModel):
    """What all requests share: a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName = None
    history: History


class RecommendRequest(Request):
    """The best next items after a history."""

    k: Annotated[StrictInt, Field(ge=1, description="items wanted")] = 10
    exclude: Annotated[list[ItemId], Field(description="ids that must not be listed")] = []
    allow: Annotated[list[ItemId] | None, Field(description="ids of which alone the list is made")] = None
    timestamps: Timestamps = None


class ScoreRequest(Request):
    """Scores of given items after a history."""

    candidates: Annotated[list[ItemId], Field(min_length=1, description="ids to score")]
    timestamps: Timestamps = None


class PathRequest(Request):
    """How a language model spells an item after a history."""

    item_id: ItemId


class ReloadRequest(BaseModel):
    """Read the folder of a model again."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName = None


class Item(BaseModel):
    """An item of the catalog."""

    item_id: str | int
    title: str | None


class ScoredItem(Item):
    """An item with what the model thinks of it."""

    score: float | None = Field(description="null where the model computed NaN or minus infinity")
    probability: float | None = Field(description="exp(score) where the score is a log-probability")


class Answer(BaseModel):
    """Which model answered, and what it held at that time."""

    model: str
    version: str


class RecommendAnswer(Answer):
    """A list, best first."""

    items: list[ScoredItem]
    certified: bool = Field(description="no other item scores higher")
    nan_scores: int


class ScoreAnswer(Answer):
    """Scores in the order of the candidates."""

    items: list[ScoredItem]


class Choice(BaseModel):
    """A token that may stand at a place of a path."""

    token: str
    probability: float


class Step(Choice):
    """A token of a path, and the likeliest of the others that may stand there."""

    log_probability: float
    num_children: int
    others: list[Choice]


class PathAnswer(Answer):
    """The path of an item, token by token; the log-probabilities sum to `score`."""

    item: Item
    score: float
    steps: list[Step]


class ItemsAnswer(BaseModel):
    """Items that a query finds."""

    items: list[Item]


class ModelAnswer(Answer):
    """A model of the server."""

    kind: str
    num_items: int
    is_exact: bool
    has_paths: bool


class ModelsAnswer(BaseModel):
    """All models of the server."""

    models: list[ModelAnswer]
    max_k: int
    max_history: int


class ReloadAnswer(Answer):
    """Whether the folder held another model."""

    changed: bool


class Health(BaseModel):
    """The server answers."""

    status: str


class Refusal(BaseModel):
    """Why there is no answer, in one sentence."""

    detail: str
