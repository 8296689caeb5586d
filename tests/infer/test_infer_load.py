"""The load client on a clock that jumps: scripted servers with known delays, traces, and the arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from infer_support import LiveServer
from load_support import Reply, Scripted, answer, asks, events, measure, refused

from liuyi.cli.main import cli
from liuyi.core.errors import DataError, LiuyiError
from liuyi.infer.load.drive import Load
from liuyi.infer.load.outcome import Outcome
from liuyi.infer.load.page import Point, page
from liuyi.infer.load.slo import Slo
from liuyi.infer.load.summary import Summary, summarise
from liuyi.infer.load.trace import BLOCK_TOKENS, read_trace
from liuyi.infer.load.workload import WORDS, Alphabet, Ask, due, made_up, read_prompts


class TestOneAnswer:
    def test_its_latencies_are_the_servers_delays(self) -> None:
        server = Scripted(lambda body: answer([0.5, 0.1, 0.3, 0.1], end=0.25))
        (outcome,) = measure(server, Load("one", asks(1)))
        assert outcome.status == "ok"
        assert outcome.ttft_s == 0.5
        assert outcome.itl_s == pytest.approx([0.1, 0.3, 0.1])
        assert outcome.tpot_s == pytest.approx(0.5 / 3)
        assert outcome.worst_itl_s == pytest.approx(0.3)
        assert outcome.e2e_s == pytest.approx(1.25)
        assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens) == (7, 2, 4)
        assert server.paths == ["/v1/completions"]
        assert server.bodies[0] == {
            "model": "m",
            "prompt": "hello",
            "max_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_tokens_are_those_of_the_usage_where_pieces_hold_several(self) -> None:
        (outcome,) = measure(Scripted(lambda body: answer([1.0, 0.6], tokens=5)), Load("one", asks(1)))
        assert outcome.completion_tokens == 5
        assert (outcome.tpot_s, outcome.itl_s) == (pytest.approx(0.6 / 4), [pytest.approx(0.6)])

    def test_a_conversations_role_is_no_first_token(self) -> None:
        def chat(body: dict[str, Any]) -> Reply:
            deltas: list[tuple[float, Any]] = [
                (0.1, {"role": "assistant", "content": ""}),
                (0.4, {"content": "a"}),
                (0.2, {"tool_calls": [{"index": 0}]}),
                (0.1, {}),
            ]
            return events(*((wait, {"choices": [{"delta": delta}]}) for wait, delta in deltas), (0, "[DONE]"))

        server = Scripted(chat)
        (outcome,) = measure(server, Load("one", asks(1)), chat=True, fields={"ignore_eos": True})
        assert outcome.ttft_s == 0.5
        assert outcome.completion_tokens == 2  # counted from pieces, for the server counts none
        assert server.paths == ["/v1/chat/completions"]
        assert server.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]
        assert server.bodies[0]["ignore_eos"] is True


class TestLoad:
    def test_an_open_loop_waits_for_nobody(self) -> None:
        server = Scripted(lambda body: answer([10.0]))
        outcomes = measure(server, Load("rate", due(asks(5), rate=2.0, rng=None)))
        assert server.times == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert [outcome.lag_s for outcome in outcomes] == [0.0] * 5
        assert summarise("rate", outcomes, Slo()).duration_s == 12.0

    def test_lanes_take_the_next_request_when_one_is_answered(self) -> None:
        waits = iter([1.0, 4.0, 1.0, 1.0, 1.0, 1.0])
        server = Scripted(lambda body: answer([next(waits)]))
        outcomes = measure(server, Load("lanes", asks(6), lanes=2))
        assert server.times == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
        summary = summarise("lanes", outcomes, Slo())
        rates = (summary.duration_s, summary.requests_per_s, summary.output_tokens_per_s)
        assert rates == pytest.approx((5.0, 6 / 5, 6 / 5))

    def test_poisson_arrivals_have_the_rate_and_the_spread_of_their_law(self) -> None:
        times = np.array([ask.due_s for ask in due(asks(20_000), 4.0, np.random.default_rng(1))])
        gaps = np.diff(times)
        assert times[0] == 0.0
        assert gaps.mean() == pytest.approx(0.25, rel=0.03)
        assert gaps.std() == pytest.approx(0.25, rel=0.03)

    def test_counts_refusals_and_failures_apart_and_against_goodput(self) -> None:
        replies = iter([answer([1.0]), refused(429), answer([3.0]), refused(500), answer([1.0, 2.0]), answer([1.0])])
        outcomes = measure(Scripted(lambda body: next(replies)), Load("mixed", due(asks(6), 1.0, None)))
        summary = summarise("mixed", outcomes, Slo.parse("ttft=2, tpot=1.5"))
        assert (summary.offered, summary.completed, summary.rejected, summary.failed) == (6, 4, 1, 1)
        assert summary.reasons == {"429": 1, "500": 1}
        assert (summary.good, summary.goodput) == (2, 2 / 6)
        assert summary.ttft is not None
        assert (summary.ttft.count, summary.ttft.p50_s, summary.ttft.max_s) == (4, 1.0, 3.0)
        assert summary.input_tokens == 4 * 7
        assert summary.output_tokens == 5


times = st.lists(st.floats(0.001, 10), min_size=1, max_size=40)


class TestArithmetic:
    @given(times, st.floats(0, 5))
    def test_the_parts_of_an_answer_make_up_the_whole(self, waits: list[float], tail: float) -> None:
        pieces = tuple(np.cumsum([1.0, *waits])[1:])
        outcome = Outcome(
            status="ok",
            due_s=1.0,
            sent_s=1.0,
            ended_s=pieces[-1] + tail,
            pieces_s=pieces,
            completion_tokens=len(pieces),
        )
        ttft, gaps = outcome.ttft_s, outcome.itl_s
        assert ttft == pytest.approx(waits[0])
        assert ttft + sum(gaps) + tail == pytest.approx(outcome.e2e_s)
        if gaps:
            assert outcome.tpot_s == pytest.approx(np.mean(gaps))
            assert outcome.worst_itl_s is not None
            assert np.mean(gaps) - 1e-9 <= outcome.worst_itl_s <= max(gaps) + 1e-9
            longest = sorted(gaps)[-max(1, int(np.ceil(len(gaps) / 10))) :]
            assert outcome.worst_itl_s == pytest.approx(np.mean(longest))
        else:
            assert outcome.tpot_s is outcome.worst_itl_s is None

    @given(st.lists(times, min_size=1, max_size=12))
    def test_latencies_are_numpys_percentiles_and_tokens_add_up(self, answers: list[list[float]]) -> None:
        outcomes = [
            Outcome(
                status="ok",
                due_s=at,
                sent_s=at,
                ended_s=at + sum(waits),
                pieces_s=tuple(at + np.cumsum(waits)),
                completion_tokens=len(waits),
            )
            for at, waits in enumerate(answers)
        ]
        summary = summarise("any", outcomes, Slo.parse("e2e=1000"))
        assert summary.ttft is not None
        firsts = [waits[0] for waits in answers]
        found = [summary.ttft.p50_s, summary.ttft.p90_s, summary.ttft.p99_s, summary.ttft.mean_s]
        assert found == pytest.approx([*np.percentile(firsts, [50, 90, 99]), np.mean(firsts)])
        assert summary.output_tokens == sum(map(len, answers))
        assert summary.output_tokens_per_s * summary.duration_s == pytest.approx(summary.output_tokens)
        assert summary.good == summary.offered
        gaps = sum(len(waits) - 1 for waits in answers)
        assert (summary.itl.count if summary.itl else 0) == gaps

    def test_nothing_measured_is_no_error(self) -> None:
        summary = summarise("none", [], Slo.parse("ttft=1"))
        assert (summary.duration_s, summary.requests_per_s, summary.goodput, summary.ttft) == (0.0, 0.0, None, None)

    @pytest.mark.parametrize("text", ["tpt=1", "ttft", "ttft=0", "ttft=-1", "ttft=soon", "ttft=nan"])
    def test_refuses_objectives_that_are_none(self, text: str) -> None:
        with pytest.raises(LiuyiError):
            Slo.parse(text)


class TestPrompts:
    def test_made_up_prompts_have_their_lengths_and_share_the_prefix(self) -> None:
        made = made_up(
            50,
            Alphabet(1000),
            np.random.default_rng(0),
            input_tokens=100,
            output_tokens=20,
            spread=0.5,
            prefix_tokens=30,
        )
        prompts = [ask.prompt for ask in made]
        assert len({tuple(prompt[:30]) for prompt in prompts}) == 1
        assert len({tuple(prompt) for prompt in prompts}) == 50
        lengths = {len(prompt) - 30 for prompt in prompts}
        assert min(lengths) >= 50
        assert max(lengths) <= 150
        assert len(lengths) > 10
        assert all(100 <= token < 1000 for prompt in prompts for token in prompt)  # type: ignore[operator]
        assert {ask.max_tokens for ask in made} <= set(range(10, 31))

    def test_without_a_vocabulary_they_are_common_words(self) -> None:
        (ask,) = made_up(1, Alphabet(), np.random.default_rng(0), input_tokens=40, output_tokens=5)
        assert isinstance(ask.prompt, str)
        assert len(ask.prompt.split()) == 40
        assert set(ask.prompt.split()) <= set(WORDS)
        assert len(set(WORDS)) == len(WORDS)

    def test_reads_prompts_from_json_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text('{"prompt": "a\u2028b"}\n\n{"messages": [{"role": "user", "content": "b"}], "max_tokens": 3}\n')
        assert read_prompts(path, 9, chat=True) == [Ask("a\u2028b", 9), Ask([{"role": "user", "content": "b"}], 3)]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('{"prompt": "a"}\n{', ":2: is no JSON"),
            ("[1]", ":1: is no JSON object"),
            ('{"text": "a"}', "has neither"),
            ('{"messages": [{"role": "user", "content": "a"}]}', "for chats"),
            ('{"prompt": "a", "max_tokens": 0}', "max_tokens"),
            ('{"prompt": "a", "max_tokens": true}', "max_tokens"),
            ("[" * 200_000, "is no JSON"),
            ('{"prompt": "ÿ"}', "cannot be read"),
            ("\n", "has no requests"),
        ],
    )
    def test_names_the_line_that_is_wrong(self, tmp_path: Path, text: str, problem: str) -> None:
        path = tmp_path / "prompts.jsonl"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=problem):
            read_prompts(path, 9)


def trace_line(timestamp: int, length: int, hashes: list[int], output: int = 40) -> str:
    row = {"timestamp": timestamp, "input_length": length, "output_length": output, "hash_ids": hashes}
    return json.dumps(row) + "\n"


class TestTrace:
    def test_equal_blocks_become_equal_tokens_and_times_seconds(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        path.write_text(
            trace_line(5000, 1100, [1, 2, 3]) + trace_line(3000, 1536, [1, 2, 9]) + trace_line(9000, 600, [7, 8])
        )
        first, second, third = read_trace(path, Alphabet(5000), speed=2.0)
        assert [ask.due_s for ask in (first, second, third)] == [0.0, 1.0, 3.0]
        assert [len(ask.prompt) for ask in (first, second, third)] == [1536, 1100, 600]
        assert first.prompt[:1024] == second.prompt[:1024]
        assert first.prompt[1024:1100] != second.prompt[1024:]
        assert third.prompt[:512] != first.prompt[:512]
        assert first.max_tokens == 40
        again = read_trace(path, Alphabet(5000), seed=1, limit=1)
        assert len(again) == 1
        assert again[0].prompt != first.prompt

    @given(
        hashes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
        rest=st.integers(1, BLOCK_TOKENS),
        scale=st.sampled_from([1.0, 0.25, 1 / 16]),
    )
    def test_a_smaller_scale_keeps_the_blocks_apart(
        self, tmp_path_factory: pytest.TempPathFactory, hashes: list[int], rest: int, scale: float
    ) -> None:
        path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
        path.write_text(trace_line(0, BLOCK_TOKENS * (len(hashes) - 1) + rest, hashes))
        (ask,) = read_trace(path, Alphabet(50_000), scale=scale)
        size = int(BLOCK_TOKENS * scale)
        assert len(ask.prompt) == size * (len(hashes) - 1) + max(1, round(rest * scale))
        blocks = [tuple(ask.prompt[at * size : (at + 1) * size]) for at in range(len(hashes) - 1)]
        assert len(set(blocks)) == len(set(hashes[:-1]))
        assert ask.max_tokens == max(1, round(40 * scale))

    @pytest.mark.parametrize(
        "line",
        [
            '{"timestamp": 0, "input_length": 10, "output_length": 1}',
            '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}',
            '{"timestamp": -1, "input_length": 10, "output_length": 1, "hash_ids": [1]}',
            '{"timestamp": 0, "input_length": "x", "output_length": 1, "hash_ids": [1]}',
            '{"timestamp": NaN, "input_length": 10, "output_length": 1, "hash_ids": [1]}',
            '{"timestamp": 0, "input_length": Infinity, "output_length": 1, "hash_ids": [1]}',
            '{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [-1]}',
            '{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": ["a"]}',
        ],
    )
    def test_names_the_line_that_is_wrong(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "trace.jsonl"
        path.write_text(trace_line(0, 10, [1]) + line)
        with pytest.raises(DataError, match=":2: "):
            read_trace(path, Alphabet())


class TestPage:
    def test_holds_its_charts_and_nothing_foreign(self) -> None:
        def summary(lanes: int) -> tuple[Summary, list[Outcome]]:
            outcomes = measure(Scripted(lambda body: answer([0.5, 0.1 * lanes])), Load("c", asks(4), lanes))
            return summarise(f"<b>{lanes}", outcomes, Slo()), outcomes

        points = [Point(*summary(lanes)) for lanes in (1, 2)]
        text = page("a & b", ["http://peer"], points, [["", "one"], ["requests", "4"]])
        assert text.count("<svg") == text.count("</svg>") == 5
        assert "<h1>a &amp; b</h1>" in text
        assert "&lt;b&gt;1" in text
        assert "<td>requests</td><td>4</td>" in text
        assert "src=" not in text
        assert "@import" not in text

    def test_draws_no_chart_of_nothing(self) -> None:
        outcomes = measure(Scripted(lambda body: refused(429)), Load("c", asks(2), 1))
        assert "<svg" not in page("t", [], [Point(summarise("c", outcomes, Slo()), outcomes)], [["", "c"]])


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, ["bench", "serve", *arguments])

    def test_measures_our_server(self, live: LiveServer, tmp_path: Path) -> None:
        html = tmp_path / "page.html"
        options = (
            "--requests",
            "6",
            "--input-tokens",
            "20",
            "--output-tokens",
            "5",
            "--slo",
            "ttft=60,e2e=60",
            "--json",
        )
        for more in (
            ("--concurrency", "1,3", "--vocab-size", "380", "--html", str(html)),
            ("--rate", "200", "--chat", "--arrivals", "constant"),
        ):
            result = self.run(live.url, *options, *more)
            assert result.exit_code == 0, result.output
            told = json.loads(result.stdout)
            assert told["model"] == "tiny"
            for one in told["measurements"]:
                assert (one["offered"], one["completed"], one["rejected"], one["failed"]) == (6, 6, 0, 0), one[
                    "reasons"
                ]
                assert one["goodput"] == 1.0
                assert 6 <= one["output_tokens"] <= 30
                assert one["asked_input_tokens"] == 6 * 20
                if "--vocab-size" in more:
                    assert one["input_tokens"] == 6 * 20
                # The words are of several tokens in a vocabulary as small as this one.
                assert ("prompt tokens for each one asked for" in result.stderr) == ("--vocab-size" not in more)
        assert html.read_text().count("<svg") == 5

    def test_replays_a_trace_against_our_server_and_prints_a_table(self, live: LiveServer, tmp_path: Path) -> None:
        path = tmp_path / "trace.jsonl"
        path.write_text("".join(trace_line(at * 3000, 700, [1, at + 2], output=64) for at in range(3)))
        result = self.run(live.url, "--trace", str(path), "--speed", "100", "--scale", "0.0625", "--vocab-size", "380")
        assert result.exit_code == 0, result.output
        assert "trace, 100 times as fast" in result.stdout
        assert "time to first token" in result.stdout

    def test_counts_what_our_server_refuses(self, live: LiveServer) -> None:
        result = self.run(live.url, "--requests", "2", "--input-tokens", "5000", "--vocab-size", "380")
        assert result.exit_code == 1
        assert "2 × 400" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("--rate", "1", "--concurrency", "2"), "give one of"),
            (("--concurrency", "1,x"), "list of positive whole numbers"),
            (("--chat", "--vocab-size", "100"), "no token ids"),
            (("--speed", "2"), "--speed is for --trace"),
            (("--concurrency", "1", "--arrivals", "poisson"), "--arrivals is for --rate"),
            (("--trace", __file__, "--input-tokens", "512"), "--input-tokens does not go with --trace"),
            (("--prompts", __file__, "--vocab-size", "512"), "--vocab-size does not go with --prompts"),
            (("http://127.0.0.1:9",), "does not answer"),
            (("http://127.0.0.1:9",), "start one with: liuyi serve"),
            (("localhost:8000",), "is no URL of a server"),
            (("http://localhost:80o0",), "is no URL of a server"),
            (("http://localhost:99999",), "there is no port 99999"),
        ],
    )
    def test_says_what_is_wrong(self, arguments: tuple[str, ...], problem: str) -> None:
        result = self.run(*arguments)
        assert result.exit_code in (1, 2)
        assert problem in " ".join(result.stderr.split())
