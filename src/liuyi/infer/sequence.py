"""One request while the engine works on it."""

from __future__ import annotations

from collections.abc import Sequence as Items

from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import Matcher
from liuyi.infer.request import Completion, FinishReason, Request, Update
from liuyi.infer.sampling import Scored
from liuyi.infer.text import TextStream


class Sequence:
    """Tokens of prompt and output, how many of them the cache holds, and what has been published."""

    def __init__(
        self,
        id: int,
        request: Request,
        *,
        seed: int,
        limit: int,
        stop_ids: frozenset[int],
        matcher: Matcher | None = None,
    ) -> None:
        """`limit` is the greatest number of tokens, prompt and output together."""
        self.id = id
        self.request = request
        self.seed = seed
        self.limit = limit
        self.stop_ids = stop_ids
        self.matcher = matcher
        self.tokens = list(request.prompt_ids)
        self.prompt_tokens = len(self.tokens)
        self.computed = 0
        """Tokens whose keys and values are in the cache."""
        self.slot = -1
        self.unscored = 0
        """Forced tokens at the end that wait for their log-probabilities before they are published."""
        self._stream = TextStream(request.stop)
        self._texts: list[str] = []
        self._published = 0
        self._scores: list[Scored] = []

    @property
    def pending(self) -> int:
        """Tokens that the model has yet to read before it can say the next one."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens of the output."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def is_generating(self) -> bool:
        """The whole prompt has been read."""
        return self.computed >= self.prompt_tokens

    def extend(self, token: int) -> list[int]:
        """Append a sampled token and those that the grammar forces after it; what was appended."""
        if self.matcher is not None and token not in self.stop_ids:
            self.matcher.accept(token)
            forced = self.matcher.forced()
            for following in forced:
                self.matcher.accept(following)
        else:
            forced = []
        new = [token, *forced][: self.limit - len(self.tokens)]
        self.tokens += new
        return new

    @property
    def is_closed(self) -> bool:
        """No token may follow those there are."""
        return len(self.tokens) >= self.limit or (self.matcher is not None and self.matcher.is_over)

    def take_ready(self, scored: int) -> list[int]:
        """Output tokens to publish now: all that are new or, if log-probabilities are asked, the `scored` first."""
        new = self.tokens[self.prompt_tokens + self._published :]
        if not self.request.logprobs:
            return new
        self.unscored = max(0, len(new) - scored)
        return new[:scored]

    def publish(self, pieces: Items[bytes], tokens: Items[int], scores: Items[Scored]) -> Update:
        """Make the next output tokens known, and end the sequence if they do. `pieces` are the bytes of each token.

        Tokens after a stop are dropped. The update holds the completion, or the error that ended the grammar.
        """
        if self.matcher is not None and self.matcher.problem:
            return Update(self.id, error=RequestError(self.matcher.problem, param="response_format"))
        text, used = "", 0
        reason: FinishReason | None = None
        for token in tokens:
            used += 1
            if token not in self.stop_ids:
                text += self._stream.push(pieces[token])
            if token in self.stop_ids or self._stream.stopped:
                reason = "stop"
                break
        self._published += used
        if reason is None and self.is_closed and self._published == self.generated:
            reason = "stop" if self.matcher is not None and self.matcher.is_over else "length"
        if reason is not None:
            text += self._stream.finish()
        self._texts.append(text)
        self._scores += scores[:used]
        return Update(
            self.id,
            text,
            tuple(tokens[:used]),
            tuple(logprob for logprob, _ in scores[:used]),
            tuple(top for _, top in scores[:used]) if self.request.top_logprobs else (),
            self._completion(reason) if reason is not None else None,
        )

    def _completion(self, reason: FinishReason) -> Completion:
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self.tokens[self.prompt_tokens : self.prompt_tokens + self._published]),
            logprobs=tuple(logprob for logprob, _ in self._scores),
            top_logprobs=tuple(top for _, top in self._scores) if self.request.top_logprobs else (),
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
        )
