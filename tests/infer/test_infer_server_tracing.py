"""Traces of requests, as OpenTelemetry's own SDK exports them; and none at all where nobody asked."""

from __future__ import annotations

import subprocess
import sys

import httpx
from infer_support import LONG, backend_over, eventually, live_server
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from liuyi.infer.engine import Engine
from liuyi.infer.server.tracing import Tracing
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_span_tells_of_each_request_in_the_clients_trace(model: Decoder, tokenizer: Tokenizer) -> None:
    exporter = InMemorySpanExporter()
    backend = backend_over(Engine(model, tokenizer, max_slots=1))
    with live_server({"tiny": backend}, tracing=Tracing(exporter)) as live:
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        url = f"{live.url}/v1/chat/completions"
        usage = httpx.post(url, json=LONG | {"max_tokens": 5}, headers=headers).json()["usage"]
        assert httpx.post(url, json=LONG | {"logit_bias": {"99999": 1}}).status_code == 400
    eventually(lambda: len(exporter.get_finished_spans()) == 2, "not exported")
    answered, refused = exporter.get_finished_spans()
    assert answered.name == "chat tiny"
    assert answered.context is not None
    assert f"{answered.context.trace_id:032x}" == TRACE
    told = dict(answered.attributes or {})
    assert told["gen_ai.request.model"] == "tiny"
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == 5
    assert [event.name for event in answered.events] == ["gen_ai.first_token"]
    assert dict(refused.attributes or {})["http.response.status_code"] == 400
    assert "lights" not in str(told)


def test_the_server_imports_neither_torch_nor_an_exporter() -> None:
    code = (
        "import sys, liuyi.infer.server.app, liuyi.infer.server.model_backend, liuyi.infer.server.run\n"
        "print([name for name in ('torch', 'opentelemetry.sdk', 'transformers', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
