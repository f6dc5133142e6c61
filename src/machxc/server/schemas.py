"""What comes in and what goes out: pydantic models, from which the OpenAPI description is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, create_model

from machxc.config import ESTIMATORS, MAX_ID
from machxc.errors import DataError
from machxc.server.engine import Engine, NumericQuery, Options, Query
from machxc.server.failures import invalid_json, invalid_request
from machxc.server.settings import ServerSettings

_ERRORS_SHOWN = 3

Estimator = Literal["mean", "unbiased", "log-probability", "logit", "min", "median"]
assert Estimator.__args__ == ESTIMATORS  # type: ignore[attr-defined]  # a Literal must be spelt out
Integer64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Strict(BaseModel):
    """No value is converted to another type, no unknown field is overlooked."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Features(Strict):
    """The features of a query, for a model that was trained on numeric features."""

    indices: list[Annotated[int, Field(ge=0, le=MAX_ID)]] = Field(description="feature ids, each once, in any order")
    values: list[Annotated[float, Field(ge=-3e38, le=3e38)]] = Field(description="a number for each of the indices")


def _kind(query: object) -> str | None:
    return "text" if isinstance(query, str) else "features" if isinstance(query, dict | Features) else None


_EITHER = Discriminator(
    _kind, custom_error_type="query", custom_error_message="Input should be a text, or an object of indices and values"
)


class SearchRequest(Strict):
    """Queries and what is wanted of them."""

    queries: list[str | Features]
    top_k: int = 10
    candidates: list[str | Integer64] | None = None
    estimator: Estimator | None = Field(None, description="how bucket scores are merged (default: as the model does)")
    minimum_score: float | None = Field(None, description="leave out labels with a lower score")
    explain: bool = Field(False, description="also tell why: n-grams, buckets, and how the labels were narrowed down")
    budget: Annotated[int, Field(ge=1, le=MAX_ID)] | None = Field(
        None,
        description="stop a query at so many members of buckets (a million: a millisecond or two), and tell whether "
        "the answer is proven to be the best; not together with candidates, which are all scored",
    )
    timeout_ms: Annotated[int, Field(ge=1, le=600_000)] | None = Field(
        None, description="answer within so many milliseconds, or fail with 504 (at most the server's own deadline)"
    )


class Token(BaseModel):
    """An n-gram of the query; spaces are edges of words."""

    token: str
    evidence: float = Field(description="how much lower the best label's logits would be without it")


class Sketch(BaseModel):
    """The bucket scores of the query as a picture."""

    rows: int
    columns: int
    buckets_per_cell: int
    folded: bool = Field(description="whether there is one repetition, its buckets line by line; else a row each")
    cells: str = Field(
        description="base64 of uint8 [rows, columns]: of each repetition 255 is its best, 0 its middle or less"
    )


class Votes(BaseModel):
    """The bucket of a label in each repetition, and what probability it got there."""

    buckets: list[int]
    probabilities: list[float]


class Step(BaseModel):
    """How many labels are left after a step."""

    step: str
    labels: int


class Why(BaseModel):
    """Why a query got its labels."""

    tokens: list[Token]
    sketch: Sketch
    votes: list[Votes] = Field(description="of the first labels, in their order")
    narrowing: list[Step]


class Result(BaseModel):
    """The labels of a query, best first."""

    labels: list[str | int]
    scores: list[float]
    proven: bool | None = Field(None, description="with a budget: whether no other label can be better")
    why: Why | None = None


class Repetitions(BaseModel):
    """How many repetitions answer; with some missing, answers are less precise."""

    answered: int
    expected: int
    missing: list[int]


class SearchResponse(BaseModel):
    """A result for each query, in their order."""

    results: list[Result]
    repetitions: Repetitions
    model: int = Field(description="1 for the model that the server started with, one more for each reload")
    milliseconds: float = Field(description="from the request's arrival to its answer, within the server")


class Limits(BaseModel):
    """What a request may ask for."""

    max_body: int
    max_queries: int
    max_top_k: int
    max_text: int
    max_candidates: int
    max_explained: int
    deadline_ms: int


class ModelResponse(BaseModel):
    """The facts of the model that answers."""

    name: str
    number: int
    takes: Literal["texts", "features"]
    n_labels: int
    n_labels_seen: int
    n_samples: int
    n_features: int
    n_buckets: int
    label_names: Literal["strings", "integers"]
    repetitions: Repetitions
    bytes: int
    config: dict[str, Any]
    limits: Limits
    examples: list[str]
    version: str


class Status(BaseModel):
    """How the server is."""

    status: str


class Error(BaseModel):
    """What went wrong: ``code`` for programs, ``message`` for people."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every answer that is an error."""

    error: Error


@dataclass(frozen=True)
class Search:
    """A request that was understood."""

    engine: Engine
    queries: list[Query]
    options: Options
    seconds: float | None


def request_model(settings: ServerSettings) -> type[SearchRequest]:
    """SearchRequest with the limits of a server."""
    text = Annotated[str, Field(max_length=settings.max_text), Tag("text")]
    query = Annotated[text | Annotated[Features, Tag("features")], _EITHER]
    many = Field(min_length=1, max_length=settings.max_queries, description="texts, or features: what the model takes")
    fields: dict[str, Any] = {
        "queries": (list[query], many),
        "top_k": (int, Field(10, ge=1, le=settings.max_top_k, description="labels to give for each query")),
        "candidates": (
            list[str | Integer64] | None,
            Field(None, min_length=1, max_length=settings.max_candidates, description="choose among these labels only"),
        ),
    }
    return create_model("SearchRequest", __base__=SearchRequest, __doc__=SearchRequest.__doc__, **fields)


def understood(body: bytes, model: type[SearchRequest], engine: Engine, settings: ServerSettings) -> Search:
    """The search that a body asks for. Failure: it is not JSON, not such a request, or not for this model."""
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise _failure(error) from None
    if request.explain and len(request.queries) > settings.max_explained:
        raise invalid_request(f"expected at most {settings.max_explained} queries with 'explain', got more")
    if request.budget is not None and request.candidates is not None:
        raise invalid_request("expected either a budget or candidates, which are all scored; got both")
    try:
        queries = [_query(query, i) for i, query in enumerate(request.queries)]
        for i, query in enumerate(queries):
            engine.check(query, i)
        candidates = None if request.candidates is None else engine.label_ids(request.candidates)
    except DataError as error:
        raise invalid_request(str(error)) from None
    options = Options(
        request.top_k, request.estimator, request.minimum_score, candidates, request.explain, request.budget
    )
    return Search(engine, queries, options, None if request.timeout_ms is None else request.timeout_ms / 1000)


def _query(given: str | Features, place: int) -> Query:
    if isinstance(given, str):
        return given
    if len(given.indices) != len(given.values):
        counts = f"{len(given.indices)} indices and {len(given.values)} values"
        raise DataError(f"queries[{place}]: expected as many values as indices, got {counts}")
    indices, values = np.array(given.indices, np.uint32), np.array(given.values, np.float32)
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    twice = np.flatnonzero(indices[1:] == indices[:-1])
    if len(twice):
        raise DataError(f"queries[{place}]: expected every index once, got {indices[twice[0]]} twice")
    return NumericQuery(indices, values[order])


def _failure(error: ValidationError) -> Exception:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return invalid_json(found[0]["msg"].removeprefix("Invalid JSON: "))
    lines = [f"{_place(problem['loc'])}: {problem['msg']}" for problem in found[:_ERRORS_SHOWN]]
    more = [f"and {len(found) - _ERRORS_SHOWN} more"] if len(found) > _ERRORS_SHOWN else []
    return invalid_request("; ".join(lines + more)[:500])


def _place(location: tuple[int | str, ...]) -> str:
    if not location:
        return "the body"
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[:5] if part != "text")
    return "".join(parts)[1:80]
