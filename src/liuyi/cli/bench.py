"""`liuyi bench`: measure a server that is running, ours or another's, with the same client."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from liuyi.cli.common import EXIT_ERROR, console, error_console, figure_text, print_json, table

if TYPE_CHECKING:
    from liuyi.infer.load.drive import Load
    from liuyi.infer.load.page import Point
    from liuyi.infer.load.summary import Latency, Summary
    from liuyi.infer.load.workload import Alphabet, Ask


DEFAULT_REQUESTS = 64
LAG_S = 0.1
"""A client that sends later than this is said to be too slow."""
LATE_SHARE = 0.25
"""So is one that is late by more than this share of the median time between two pieces, for one piece in a hundred."""
LENGTH_OFF = 0.25
"""Prompts that are longer or shorter than what was asked for by more than this share are said to be."""
MEANT_FOR = {"arrivals": "rate", "speed": "trace", "scale": "trace"}
"""Options that say how another one is meant, and nothing without it."""
MADE_UP = ("input_tokens", "spread", "prefix_tokens")
INSTEAD = {"trace": ("prompts", "output_tokens", *MADE_UP), "prompts": ("vocab_size", *MADE_UP)}
"""Files of requests, and the options that say what a file says already."""
LATENCIES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "worst_itl": "its worst 10 %",
    "e2e": "end to end",
}


class Levels(click.ParamType[tuple[int, ...]]):
    """Positive whole numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            levels = tuple(int(part) for part in value.split(","))
        except ValueError:
            levels = (0,)
        if min(levels) < 1:
            self.fail(f"'{value}' is no list of positive whole numbers, such as 1,4,16", param, ctx)
        return levels


@click.group()
def command() -> None:
    """Measure how fast a server answers."""


@command.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--model", default="", help="The model's name on the server [default: its first].")
@click.option("--chat", is_flag=True, help="Ask for chat completions rather than completions.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second, whatever the server does.")
@click.option(
    "--arrivals",
    type=click.Choice(("poisson", "constant")),
    default="poisson",
    show_default=True,
    help="How --rate spreads them.",
)
@click.option("--concurrency", type=Levels(), help="Requests kept under way, such as 1,4,16: a measurement for each.")
@click.option("--trace", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Replay a Mooncake trace.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), default=1.0, help="Replay so many times as fast.")
@click.option("--scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Multiply a trace's lengths.")
@click.option(
    "--requests", type=click.IntRange(1), help="Requests of each measurement [default: 64, or all of a file]."
)
@click.option("--input-tokens", type=click.IntRange(1), default=512, show_default=True, help="Length of a prompt.")
@click.option("--output-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest answer.")
@click.option(
    "--spread", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Lengths vary by this share."
)
@click.option("--prefix-tokens", type=click.IntRange(0), default=0, help="Tokens before each prompt that all share.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON lines with 'prompt' or 'messages' instead of made-up prompts.",
)
@click.option(
    "--vocab-size", type=click.IntRange(32), help="Make prompts of token ids below this: lengths are exact then."
)
@click.option("--ignore-eos", is_flag=True, help="Ask for answers of full length (vLLM, llama.cpp and Liuyi can).")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--warm-up", type=click.IntRange(0), default=1, show_default=True, help="Requests that are not counted.")
@click.option("--slo", default="", metavar="LIMITS", help="Objectives in seconds: ttft=2,tpot=0.1,itl=0.5,e2e=30.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of prompts and arrivals.")
@click.option(
    "--api-key-env", default="LIUYI_API_KEY", show_default=True, metavar="NAME", help="Holds the server's key."
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with charts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def serve(url: str, **asked: Any) -> None:
    """Put the server at URL under load.

    How, say --rate, --concurrency or --trace [default: --concurrency 1]. It may be any server with the OpenAI API.
    Latencies and their percentiles are those of whole answers; what is refused (429, 503) or fails is counted apart,
    and counts against goodput. Ends with 1 if no answer was whole.
    """
    from liuyi.infer.address import api_url
    from liuyi.infer.load.client import Endpoint
    from liuyi.infer.load.connect import connect
    from liuyi.infer.load.drive import in_lanes
    from liuyi.infer.load.page import Point
    from liuyi.infer.load.slo import Slo
    from liuyi.infer.load.strain import strained
    from liuyi.infer.load.summary import summarise

    if sum(asked[mode] is not None for mode in ("rate", "concurrency", "trace")) > 1:
        raise click.UsageError("give one of --rate, --concurrency and --trace")
    _refuse_without_effect(click.get_current_context())
    slo = Slo.parse(asked["slo"])
    loads, warm_up = _loads(asked), _made_up(asked, asked["warm_up"], seed=(asked["seed"], 1))
    api, key = api_url(url), os.environ.get(asked["api_key_env"], "").strip()

    async def measure() -> tuple[str, list[Point]]:
        async with connect(api, key) as http:
            endpoint = Endpoint(
                http,
                api,
                chat=asked["chat"],
                model=asked["model"],
                fields={"temperature": asked["temperature"]} | ({"ignore_eos": True} if asked["ignore_eos"] else {}),
                timeout_s=asked["timeout_s"],
            )
            await endpoint.choose_model()
            await in_lanes(endpoint.send, warm_up, len(warm_up), lambda: None)
            points = []
            for load in loads:
                with _progress(load.label, len(load.asks)) as advance:
                    async with strained() as strain:
                        outcomes = await load.run(endpoint.send, advance)
                points.append(Point(summarise(load.label, outcomes, slo, strain), outcomes))
            return endpoint.model, points

    model, points = asyncio.run(measure())
    summaries = [point.summary for point in points]
    _warn_of_lengths(summaries)
    if asked["html"]:
        _write_page(asked["html"], url, model, points)
    if asked["as_json"]:
        print_json({"url": url, "model": model, "measurements": [asdict(summary) for summary in summaries]})
    else:
        _print(summaries)
    if not any(summary.completed for summary in summaries):
        sys.exit(EXIT_ERROR)


def _refuse_without_effect(ctx: click.Context) -> None:
    """Raises UsageError if an option was given that would change nothing."""
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    for name, needed in MEANT_FOR.items():
        if name in given and needed not in given:
            raise click.UsageError(f"--{name} is for --{needed}")
    for file, options in INSTEAD.items():
        for name in options:
            if {file, name} <= given:
                raise click.UsageError(f"--{name.replace('_', '-')} does not go with --{file}, which says it already")


def _loads(asked: dict[str, Any]) -> list[Load]:
    """The measurements to make, each with its requests."""
    from numpy.random import default_rng

    from liuyi.infer.load.drive import Load
    from liuyi.infer.load.trace import read_trace
    from liuyi.infer.load.workload import due

    seed = asked["seed"]
    if path := asked["trace"]:
        asks = read_trace(
            path, _alphabet(asked), speed=asked["speed"], scale=asked["scale"], limit=asked["requests"], seed=seed
        )
        return [Load(f"{path.stem}, {asked['speed']:g} times as fast" if asked["speed"] != 1 else path.stem, asks)]
    if rate := asked["rate"]:
        poisson = asked["arrivals"] == "poisson"
        asks = due(_asks(asked, 0), rate, default_rng((seed, 0)) if poisson else None)
        return [Load(f"{rate:g} requests/s, {asked['arrivals']}", asks)]
    levels = asked["concurrency"] or (1,)
    return [Load(f"concurrency {lanes}", _asks(asked, at), lanes) for at, lanes in enumerate(levels)]


def _asks(asked: dict[str, Any], measurement: int) -> list[Ask]:
    """A measurement's requests; made-up prompts are new in each, so that no cache knows them."""
    from liuyi.infer.load.workload import read_prompts

    if asked["prompts"]:
        return read_prompts(asked["prompts"], asked["output_tokens"], chat=asked["chat"])[: asked["requests"]]
    return _made_up(asked, asked["requests"] or DEFAULT_REQUESTS, seed=(asked["seed"], 2, measurement))


def _made_up(asked: dict[str, Any], count: int, seed: tuple[int, ...]) -> list[Ask]:
    from numpy.random import default_rng

    from liuyi.infer.load.workload import made_up

    names = ("input_tokens", "output_tokens", "spread", "prefix_tokens")
    return made_up(count, _alphabet(asked), default_rng(seed), **{name: asked[name] for name in names})


def _alphabet(asked: dict[str, Any]) -> Alphabet:
    from liuyi.infer.load.workload import Alphabet

    if asked["chat"] and asked["vocab_size"]:
        raise click.UsageError("a conversation holds no token ids: leave out --chat or --vocab-size")
    return Alphabet(asked["vocab_size"])


@contextmanager
def _progress(label: str, count: int) -> Iterator[Callable[[], None]]:
    """A bar with the time that is left, on standard error."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Drawn ten times a second, as by default, it would delay pieces that are being timed.
    with Progress(
        TextColumn("{task.description}"), *parts, console=error_console(), transient=True, refresh_per_second=2
    ) as progress:
        task = progress.add_task(label, total=count)
        yield lambda: progress.advance(task)


def _latency(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["–"] * 3
    return [f"{1000 * value:,.1f}" for value in (latency.p50_s, latency.p90_s, latency.p99_s)]


def _rows(summaries: Sequence[Summary]) -> list[list[str]]:
    """What the table and the page show: a head, and a row for each figure with a column for each measurement."""
    rows: list[list[str]] = [["", *(summary.label for summary in summaries)]]

    def row(name: str, cell: Callable[[Summary], str]) -> None:
        rows.append([name, *map(cell, summaries)])

    row("requests offered", lambda summary: f"{summary.offered:,}")
    row("answered", lambda summary: f"{summary.completed:,}")
    row("rejected (429, 503)", lambda summary: f"{summary.rejected:,}")
    row("failed", lambda summary: f"{summary.failed:,}")
    if any(summary.goodput is not None for summary in summaries):
        row("goodput, of offered", lambda summary: f"{summary.goodput or 0:.1%}")
        row("good requests/s", lambda summary: figure_text(summary.goodput_per_s or 0))
    row("duration, s", lambda summary: f"{summary.duration_s:,.1f}")
    row("requests/s", lambda summary: figure_text(summary.requests_per_s))
    row("output tokens/s", lambda summary: figure_text(summary.output_tokens_per_s))
    row("tokens/s, prompts too", lambda summary: figure_text(summary.total_tokens_per_s))
    if any(summary.asked_input_tokens for summary in summaries):
        row("prompt tokens asked for", lambda summary: f"{summary.asked_input_tokens:,}")
    row("prompt tokens", lambda summary: f"{summary.input_tokens:,}")
    if any(summary.cached_tokens for summary in summaries):
        row("of these cached", lambda summary: f"{summary.cached_tokens:,}")
    row("output tokens", lambda summary: f"{summary.output_tokens:,}")
    for name, title in LATENCIES.items():
        row(title, lambda summary, name=name: " / ".join(_latency(getattr(summary, name))))  # type: ignore[misc]
    row("client late by", lambda summary: " / ".join(_latency(summary.client_late)))
    row("client, of a core", lambda summary: f"{summary.client_core:.0%}")
    return rows


def _print(summaries: Sequence[Summary]) -> None:
    head, *rows = _rows(summaries)
    listing = table(*head, right=tuple(head[1:]))
    for row in rows:
        listing.add_row(*row)
    console().print(listing)
    console().print("latencies in ms: p50 / p90 / p99", style="dim")
    for summary in summaries:
        if summary.slo:
            console().print(f"objectives: {summary.slo}", style="dim")
            break
    for summary in summaries:
        for reason, count in summary.reasons.items():
            console().print(f"{summary.label}: {count:,} × {reason}", style="yellow")
        if summary.lag_max_s > LAG_S:
            late = f"the client sent a request {summary.lag_max_s:.2f} s late: it is too slow for this load"
            console().print(f"{summary.label}: {late}", style="yellow")
        if summary.client_late and summary.itl and summary.client_late.p99_s > LATE_SHARE * summary.itl.p50_s:
            late = f"the client was late by {1000 * summary.client_late.p99_s:.1f} ms at p99"
            hint = "latencies are partly its own, and it needs a core for itself, or fewer streams"
            console().print(f"{summary.label}: {late}: {hint}", style="yellow")


def _warn_of_lengths(summaries: Sequence[Summary]) -> None:
    for summary in summaries:
        asked, counted = summary.asked_input_tokens, summary.input_tokens
        if asked and counted and abs(counted - asked) > LENGTH_OFF * asked:
            off = f"the server counts {counted / asked:.2g} prompt tokens for each one asked for"
            hint = "with --vocab-size, and without --chat, lengths are exact"
            error_console().print(f"{summary.label}: {off}; {hint}", style="yellow", soft_wrap=True)


def _write_page(path: Path, url: str, model: str, points: Sequence[Point]) -> None:
    from datetime import UTC, datetime

    from liuyi.core.cores import cores
    from liuyi.core.machine import cpu_model
    from liuyi.infer.load.page import page

    facts = [f"{url}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", f"client on {cpu_model()}, {cores()} cores"]
    facts += [f"objectives: {slo}" for slo in {point.summary.slo for point in points} if slo]
    rows = _rows([point.summary for point in points])
    path.write_text(page(f"{model} under load", [*facts, "latencies in ms: p50 / p90 / p99"], points, rows), "utf-8")
