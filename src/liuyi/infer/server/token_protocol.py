"""Bodies and answers of `/tokenize` and `/detokenize`, which are vLLM's, and of `/v1/embeddings`, which is OpenAI's."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from liuyi.infer.errors import RequestError
from liuyi.infer.server.backend import ChatRequest, ToolUse
from liuyi.infer.server.messages import Body, Message, Tool
from liuyi.infer.server.protocol import MAX_INT, MAX_TOOLS, Texts, TokenId, not_empty, one_by_one

MAX_TEXTS = 2048
"""As many as OpenAI embeds at once; clients cut what they have into lots of that size."""


class TokenizeBody(Body):
    """The body of `POST /tokenize`: a text as it is, or a conversation through the chat template."""

    model: str
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    add_generation_prompt: bool = Field(True, description="end a conversation where the assistant begins to speak")
    add_special_tokens: bool = Field(False, description="begin a text with the model's first token, if it has one")
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _text_or_conversation(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("either prompt or messages is needed", param="prompt")
        for at, message in enumerate(self.messages or ()):
            message.check(f"messages.{at}")
        return self

    def conversation(self) -> ChatRequest:
        """The conversation, where there is one."""
        tools = ToolUse(functions=[tool.as_function() for tool in self.tools]) if self.tools else None
        messages = [message.as_dict() for message in self.messages or ()]
        return ChatRequest(messages=messages, tools=tools, template_variables=self.chat_template_kwargs or {})


class DetokenizeBody(Body):
    """The body of `POST /detokenize`."""

    model: str
    tokens: list[TokenId] = Field(max_length=1 << 20)


class EmbeddingBody(Body):
    """The body of `POST /v1/embeddings`."""

    model: str
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=MAX_INT, description="only the model's own size, if at all")
    user: str | None = Field(None, description="accepted for clients that send it; changes nothing")

    @field_validator("input")
    @classmethod
    def _not_empty(cls, input: Texts) -> Texts:
        return not_empty(input, MAX_TEXTS)

    @property
    def texts(self) -> list[str | list[int]]:
        """The texts one by one."""
        return one_by_one(self.input)

    def check_dimensions(self, size: int) -> None:
        """Raises RequestError if vectors of another size than the model's are asked for."""
        if self.dimensions not in (None, size):
            raise RequestError(f"embeddings of this model have {size} dimensions, and no others", param="dimensions")


def tokens_answer(
    tokens: Sequence[int], *, max_tokens: int | None, token_strs: Sequence[str] | None = None
) -> dict[str, Any]:
    """The answer of `/tokenize`."""
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": max_tokens, "tokens": list(tokens)}
    return answer | ({"token_strs": list(token_strs)} if token_strs is not None else {})


def embeddings_answer(
    model: str, vectors: Sequence[NDArray[np.float32]], *, encoding: Literal["float", "base64"], tokens: int
) -> Mapping[str, Any]:
    """The answer of `/v1/embeddings`; base64 is that of little-endian float32, as OpenAI's clients read it."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector.tolist()
            if encoding == "float"
            else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}
