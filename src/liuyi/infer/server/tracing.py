"""OpenTelemetry traces of requests, where somebody wants them: `pip install 'liuyi[otel]'` and `--otel URL`.

One span a request, named and told in OpenTelemetry's conventions for generative models: the model, tokens read and
written, the status, and an event at the first token. It continues the trace that the client's `traceparent` names.
Prompts and answers are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from liuyi.core.errors import LiuyiError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span


class Tracing:
    """Makes spans and sends them, in a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._extract = extract
        self._provider = TracerProvider(resource=Resource.create({"service.name": "liuyi"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("liuyi.server")

    @classmethod
    def to(cls, url: str) -> Tracing:
        """Traces for the OTLP receiver at `url`, such as http://localhost:4318/v1/traces.

        Raises LiuyiError if that is no URL, or if OpenTelemetry is not installed.
        """
        if not url.startswith(("http://", "https://")):
            raise LiuyiError(f"'{url}' is no URL of a receiver", hint="such as http://localhost:4318/v1/traces")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            return cls(OTLPSpanExporter(endpoint=url))
        except ImportError as error:
            raise LiuyiError("OpenTelemetry is not installed", hint="pip install 'liuyi[otel]'") from error

    def begin(self, model: str, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request that has come in now."""
        from opentelemetry.trace import SpanKind

        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "gen_ai.provider.name": "liuyi"}
        context = self._extract(dict(headers))
        span = self._tracer.start_span(f"chat {model}", context, kind=SpanKind.SERVER, attributes=attributes)
        return RequestSpan(span)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """One request's span."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def first_token(self) -> None:
        """The answer begins."""
        self._span.add_event("gen_ai.first_token")

    def end(self, status: int, **tokens: int) -> None:
        """The request is over; `tokens` are named as OpenAI's usage names them."""
        from opentelemetry.trace import Status, StatusCode

        told: dict[str, Any] = {
            "http.response.status_code": status,
            "gen_ai.usage.input_tokens": tokens["prompt_tokens"],
            "gen_ai.usage.output_tokens": tokens["completion_tokens"],
        }
        self._span.set_attributes(told)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
