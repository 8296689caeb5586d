"""The figures that Prometheus reads."""

from __future__ import annotations

import re

import httpx
from infer_support import MESSAGES, backend_over, client_of, live_server

from liuyi.infer.engine import Engine
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer


def test_metrics_are_prometheus_text_and_add_up(model: Decoder, tokenizer: Tokenizer) -> None:
    with live_server({"tiny": backend_over(Engine(model, tokenizer, max_slots=2))}) as live, client_of(live) as client:
        answers = [client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=6) for _ in range(3)]
        for path, body in (
            ("/v1/completions", {"model": "tiny"}),
            ("/v1/completions", {"model": "none", "prompt": "a"}),
            ("/v1/completions", {"model": "tiny", "prompt": [1] * 300}),
            ("/v1/nothing", {}),
        ):
            assert httpx.post(f"{live.url}{path}", json=body).status_code in (400, 404)
        response = httpx.get(f"{live.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in response.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) liuyi_\w+ .+", line)
        else:
            name, value = line.rsplit(" ", 1)
            assert re.fullmatch(r'liuyi_\w+(\{(\w+="[^"]*",?)+\})?', name)
            values[name] = float(value)
    written = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    assert values['liuyi_completion_tokens_total{model="tiny"}'] == written
    assert values['liuyi_requests_total{model="tiny",status="200"}'] == 3
    for reason in ("400", "404", "model_not_found", "context_length_exceeded"):
        assert values[f'liuyi_rejections_total{{reason="{reason}"}}'] == 1
    assert values['liuyi_time_to_first_token_seconds_count{model="tiny"}'] == 3
    assert values['liuyi_time_to_first_token_seconds_bucket{model="tiny",le="+Inf"}'] == 3
    assert values['liuyi_inter_token_latency_seconds_count{model="tiny"}'] == written - 3
    assert values['liuyi_requests_running{model="tiny"}'] == 0
    assert values['liuyi_kv_cache_used_tokens{model="tiny"}'] == 0
    assert values['liuyi_kv_cache_tokens{model="tiny"}'] == 512
    assert (
        values['liuyi_prefix_hit_tokens_total{model="tiny"}']
        <= values['liuyi_prefix_queried_tokens_total{model="tiny"}']
    )
    assert values['liuyi_engine_restarts_total{model="tiny"}'] == 0
    assert values['liuyi_up{model="tiny"}'] == 1
    assert values['liuyi_slots{model="tiny"}'] == 2
