"""Parameters that all generators have: whom to ask, how, and how much it may cost."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from liuyi.core.errors import LiuyiError
from liuyi.core.step import BesideKey, Input, Params, SourcePath
from liuyi.data.synthesis.templates import Language
from liuyi.infer.address import http_url


def _bare_url(url: str) -> str:
    """A URL goes into recipes, keys and logs, so it must hold no secret."""
    if not url:
        return url
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an endpoint's URL holds no user, password or query; name a key's variable: `api_key_env`")
    try:
        http_url(url)
    except LiuyiError as error:
        raise ValueError(error.message) from None
    return url


class AskParams(Params):
    endpoint: Annotated[str, AfterValidator(_bare_url)] = Field(
        "", description="URL of a server with the OpenAI API, `/v1` included; empty: the checkpoint at `model` is asked"
    )
    endpoint_model: str = Field("", description="the model as the endpoint names it; empty: its first one")
    api_key_env: str = Field("", description="the environment variable that holds the endpoint's key")
    structured: bool = Field(
        False, description="the endpoint holds answers to a JSON Schema (`response_format`); Liuyi's engine always does"
    )
    concurrency: Annotated[int, BesideKey] = Field(32, ge=1, le=1024, description="requests at once")
    tries: int = Field(6, ge=1, le=20, description="how often a request is sent before it is given up")
    retry_wait_s: Annotated[float, BesideKey] = Field(
        1.0, gt=0, le=60, description="the wait before a second try; it doubles, unless the endpoint says Retry-After"
    )
    timeout_s: float = Field(120.0, gt=0, description="the longest time for one answer")
    temperature: float = Field(0.7, ge=0, le=2, description="of answers; 0 takes the most probable token each time")
    top_p: float = Field(1.0, gt=0, le=1, description="only the most probable tokens up to this mass")
    max_tokens: int = Field(1024, ge=1, description="longest answer; a longer one is cut off and dropped")
    max_requests: int | None = Field(None, ge=1, description="stop after so many requests, repeated ones included")
    max_tokens_out: int | None = Field(
        None, ge=1, description="stop before answers have more tokens than this together"
    )
    price_in: float | None = Field(None, ge=0, description="price of a million tokens of prompts")
    price_out: float | None = Field(None, ge=0, description="price of a million tokens of answers")
    language: Language = Field("en", description="of the prompts: `en` or `zh`")
    ngram: int = Field(13, ge=4, description="words in a row that count as being in an eval set")
    label: str = Field("", description="another label asks again: an endpoint may change, what it answered does not")


class TemplateParams(AskParams):
    template: SourcePath | None = Field(None, description="a Jinja file of your own in place of the generator's prompt")


class NewParams(Params):
    max_rouge: float = Field(
        0.7, gt=0, le=1, description="an instruction whose ROUGE-L to an earlier one reaches this is a near duplicate"
    )
    min_grade: int | None = Field(
        None, ge=1, le=5, description="the lowest grade of the judge that is kept, 5 is best; none: nothing is judged"
    )
    judge_model: str = Field("", description="the endpoint's model that judges; empty: the one that answers")


MODEL = Input("checkpoint", "the model to ask, run by Liuyi's engine; leave it out for an `endpoint`", optional=True)
EVALSETS = Input("evalset", "tests: what asks the same is dropped", optional=True, many=True)
ASKED = {"model": MODEL, "evalsets": EVALSETS}
"""Input ports that all generators have."""
EVIDENCE = "dropped.parquet has each row left out with the reason, answers.parquet every answer as it came"
