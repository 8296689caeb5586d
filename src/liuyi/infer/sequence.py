"""One request while the engine works on it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Items

from liuyi.infer.adapters import HeldAdapter
from liuyi.infer.blocks import BlockKeys
from liuyi.infer.errors import RequestError
from liuyi.infer.grammar import Matcher
from liuyi.infer.request import Completion, FinishReason, Request, Update
from liuyi.infer.sampling import Scored
from liuyi.infer.text import TextStream


class Sequence:
    """Tokens of prompt and output, the blocks that hold them, and what has been published."""

    def __init__(
        self,
        id: int,
        request: Request,
        *,
        seed: int,
        limit: int,
        stop_ids: frozenset[int],
        matcher: Matcher | None = None,
        visible: Mapping[int, bytes] | None = None,
        number: int = 0,
        adapter: HeldAdapter | None = None,
    ) -> None:
        """`limit` is the greatest number of tokens, prompt and output together; `visible` are special tokens that
        the text shows; `number` says who came first; `adapter` is what the request took of the engine."""
        self.id = id
        self.request = request
        self.seed = seed
        self.limit = limit
        self.stop_ids = stop_ids
        self.matcher = matcher
        self.wants_logits = matcher is not None or request.logprobs or request.prompt_logprobs
        """For more than to choose a token."""
        self.rank = (request.priority, number)
        """Whose turn it is: the lowest first."""
        self.tokens = list(request.prompt_ids)
        self.prompt_tokens = len(self.tokens)
        self.slot = -1
        """Its place in the sampler while it runs."""
        self.blocks = array("i")
        self.adapter = adapter
        self.keys = BlockKeys(self.tokens, root=b"" if adapter is None else bytes.fromhex(adapter.digest))
        self.computed = 0
        """Tokens whose keys and values are in the blocks."""
        self.to_read = self.prompt_tokens
        """Tokens that have to be read before the next one can be generated, since it began to run."""
        self.cached = 0
        """Tokens of the prompt that were found in the cache when it first began to run."""
        self.was_preempted = False
        self._visible = visible or {}
        self._stream = TextStream(request.stop)
        self._texts: list[str] = []
        self._published = 0
        self._scores: list[Scored] = []
        self._prompt_scores: list[Scored] = []
        self._told_prompt = False

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
        """What there was when it began to run has been read."""
        return self.computed >= self.to_read

    @property
    def next_row(self) -> int:
        """Position of the first token after which logits are wanted; those before it need only be in the cache."""
        if self.request.prompt_logprobs and len(self._prompt_scores) < self.prompt_tokens - 1:
            return len(self._prompt_scores)
        if self.request.logprobs:
            return self.prompt_tokens - 1 + self._published
        return len(self.tokens) - 1

    def extend(self, token: int) -> list[int]:
        """Append a sampled token and those that the grammar forces after it; what was appended."""
        if self.matcher is not None and token not in self.stop_ids:
            self.matcher.accept(token)
            # What has no room is not accepted either: the grammar would be over though the answer is cut.
            forced = self.matcher.forced()[: self.limit - len(self.tokens) - 1]
            for following in forced:
                self.matcher.accept(following)
            new = [token, *forced]
        else:
            new = [token]
        self.tokens += new
        return new

    @property
    def is_closed(self) -> bool:
        """No token may follow those there are."""
        return len(self.tokens) >= self.limit or (self.matcher is not None and self.matcher.is_over)

    @property
    def unscored_prompt(self) -> list[int]:
        """Tokens of the prompt that have been predicted and not scored: those after `next_row`, if they are wanted."""
        if not self.request.prompt_logprobs:
            return []
        return self.tokens[len(self._prompt_scores) + 1 : min(self.computed + 1, self.prompt_tokens)]

    def score_prompt(self, scores: Items[Scored]) -> None:
        """Take the scores of `unscored_prompt`."""
        self._prompt_scores += scores

    @property
    def ready(self) -> list[int]:
        """Output tokens to publish now: all new ones or, if log-probabilities are wanted, those that have logits."""
        begin = self.prompt_tokens + self._published
        if not self.request.logprobs:
            return self.tokens[begin:]
        return self.tokens[begin : self.computed + 1]

    def publish(self, pieces: Items[bytes], tokens: Items[int], scores: Items[Scored]) -> Update:
        """Make the next output tokens known, and end the sequence if they do. `pieces` are the bytes of each token.

        Tokens after a stop are dropped. The update holds the completion, or the error that ended the grammar.
        """
        if self.matcher is not None and self.matcher.problem:
            param = self.request.grammar.param if self.request.grammar else "schema"
            return Update(self.id, error=RequestError(self.matcher.problem, param=param))
        text, used = "", 0
        reason: FinishReason | None = None
        for token in tokens:
            used += 1
            if token not in self.stop_ids:
                may_stop = self._published + used > self.request.min_tokens
                text += self._stream.push(self._visible.get(token) or pieces[token], may_stop=may_stop)
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
        told = [] if self._told_prompt else self._prompt_scores
        self._told_prompt = True
        return Update(
            self.id,
            text,
            tuple(tokens[:used]),
            _logprobs(scores[:used]),
            self._tops(scores[:used]),
            _logprobs(told),
            self._tops(told),
            self._completion(reason) if reason is not None else None,
        )

    def _completion(self, reason: FinishReason) -> Completion:
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self.tokens[self.prompt_tokens : self.prompt_tokens + self._published]),
            logprobs=_logprobs(self._scores),
            top_logprobs=self._tops(self._scores),
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            prompt_logprobs=_logprobs(self._prompt_scores),
            prompt_top_logprobs=self._tops(self._prompt_scores),
            cached_tokens=self.cached,
        )

    def _tops(self, scores: Items[Scored]) -> tuple[tuple[tuple[int, float], ...], ...]:
        return tuple(top for _, top in scores) if self.request.top_logprobs else ()


def _logprobs(scores: Items[Scored]) -> tuple[float, ...]:
    return tuple(logprob for logprob, _ in scores)
