"""`liuyi serve`: a model or an application behind the OpenAI API."""

from __future__ import annotations

import logging
import os
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from liuyi.cli.common import console, home
from liuyi.core.errors import LiuyiError
from liuyi.infer.tools.formats import FORMATS

if TYPE_CHECKING:
    from fastapi import FastAPI
    from rich.text import Text

    from liuyi.cli.models import Opening
    from liuyi.core.home import Home
    from liuyi.core.ledger import Ledger
    from liuyi.infer.server.answers import Answer
    from liuyi.infer.server.gate import Gate
    from liuyi.infer.server.tracing import Tracing

    Guards = dict[str, Any]
    """What both kinds of applications are given."""

KEYS = "LIUYI_API_KEYS"


@click.command()
@click.argument("ref", required=False)
@click.option("--name", help="The model's name in the API [default: the name of the step that made it].")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--backend",
    metavar="KIND[:URL]",
    help="Stand before an engine that is running: vllm, llama.cpp or openai:URL; $LIUYI_BACKEND_API_KEY is its key. "
    "REF then says what it serves, for the lineage.",
)
@click.option(
    "--weights",
    type=click.Choice(("auto", "reference", "fp32", "bf16", "int8", "int4")),
    help="Number format of the weights; 'reference' runs them in torch as they are [default: auto, int8 on a CPU].",
)
@click.option(
    "--kv",
    type=click.Choice(("auto", "fp32", "bf16", "int8")),
    help="Number format of keys and values [default: auto].",
)
@click.option(
    "--kv-tokens", type=click.IntRange(64), help="Room in the cache, in tokens [default: what memory allows]."
)
@click.option("--slots", type=click.IntRange(1), help="Requests decoded at once [default: 64].")
@click.option(
    "--max-tokens", type=click.IntRange(2), help="Tokens of prompt and answer [default: the model's context]."
)
@click.option(
    "--speculate",
    metavar="lookup|MODEL",
    help="Draft tokens that are checked at once: from the text itself, or by a small model with the same vocabulary.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=FOLDER",
    help="A LoRA adapter in PEFT's layout, which answers to the model name NAME; may be given several times.",
)
@click.option(
    "--tool-format",
    type=click.Choice(sorted(FORMATS)),
    help="How the model writes tool calls [default: as its chat template teaches].",
)
@click.option(
    "--chat-template",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A Jinja file, in place of the model's own chat template.",
)
@click.option("--adapter-loading", is_flag=True, help="Let callers load and drop adapters through /v1/adapters.")
@click.option("--max-queue", type=click.IntRange(0), default=256, show_default=True, help="Requests that may wait.")
@click.option(
    "--api-key-env",
    default=KEYS,
    show_default=True,
    metavar="NAME",
    help="The environment variable that holds the API keys, separated by commas.",
)
@click.option(
    "--keys-file", type=click.Path(path_type=Path, dir_okay=False), help="Keys made by 'liuyi keys', with their limits."
)
@click.option(
    "--max-queue-tokens",
    type=click.IntRange(1),
    help="Tokens that may wait, read and written [default: a quarter of --max-queue whole contexts, at least 16].",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The most that one answer may take [default: any time].",
)
@click.option(
    "--max-body-mb", type=click.FloatRange(0.001, 1024), default=4, show_default=True, help="The largest request."
)
@click.option("--otel", metavar="URL", help="Send traces to this OTLP receiver (needs liuyi[otel]).")
@click.option("--drain-s", type=click.IntRange(0), default=30, show_default=True, help="Patience on SIGTERM, seconds.")
@click.pass_context
def command(
    ctx: click.Context,
    ref: str | None,
    name: str | None,
    host: str,
    port: int,
    backend: str | None,
    weights: str | None,
    kv: str | None,
    kv_tokens: int | None,
    slots: int | None,
    max_tokens: int | None,
    speculate: str | None,
    adapters: tuple[str, ...],
    tool_format: str | None,
    chat_template: Path | None,
    adapter_loading: bool,
    max_queue: int,
    api_key_env: str,
    keys_file: Path | None,
    max_queue_tokens: int | None,
    request_timeout: float | None,
    max_body_mb: float,
    otel: str | None,
    drain_s: int,
) -> None:
    """Serve REF through the OpenAI API: chat completions, completions, embeddings and models.

    REF is the beginning of a digest, an output of a run's step (last/sft.checkpoint), a folder with a model, or a
    GGUF file; without it, the newest application of the last run, else its newest checkpoint. Every answer is
    entered in the ledger, so that 'liuyi lineage ID' walks from it to the model and the data.
    """
    from liuyi.cli.models import Opening, refuse_for_backend
    from liuyi.infer.address import is_loopback
    from liuyi.infer.server.guard import require_keys_beyond_loopback
    from liuyi.infer.server.keys import KeyFile, KeyRing

    given = [key.strip() for key in os.environ.get(api_key_env, "").split(",") if key.strip()]
    if keys_file is not None and not keys_file.exists():
        hint = f"make a key with: liuyi keys create NAME --keys-file {shlex.quote(str(keys_file))}"
        raise LiuyiError("there is no file with API keys", where=str(keys_file), hint=hint)
    keys = KeyRing(given, KeyFile(keys_file) if keys_file is not None else None)
    require_keys_beyond_loopback(host, keys, api_key_env)
    place = home(ctx)
    opening = Opening(
        weights=weights,
        kv=kv,
        kv_tokens=kv_tokens,
        slots=slots,
        max_tokens=max_tokens,
        max_queue_tokens=max_queue_tokens,
        speculate=speculate,
        adapters=_named_folders(adapters) or None,
        tool_format=tool_format,
        chat_template=_template_in(chat_template),
    )
    from liuyi.infer.server.sockets import bind, is_everywhere, url_of

    def record(answer: Answer) -> None:
        ledger.add_answer(answer.id, answer.model_digest, answer.app_digest, answer.request_digest, dict(answer.detail))

    bound = bind(host, port)
    try:
        guards: Guards = {
            "record": record,
            "keys": keys,
            "local_only": is_loopback(host) and not keys,
            "max_body_bytes": int(max_body_mb * 2**20),
            "timeout_s": request_timeout,
            "tracing": _tracing(otel),
        }
        if backend is not None:
            refuse_for_backend(opening, name, adapter_loading=adapter_loading)
            app, gate, described = _before(backend, place, ref, guards, max_queue)
        else:
            app, gate, described = _over(
                place, ref, name, opening, guards | {"adapter_loading": adapter_loading}, max_queue
            )
        from liuyi.infer.server.run import make_server, serve

        # Imported and opened while the engine's process loads the model: that takes half a second of a core, which the
        # first answer's record would take from whatever is generated then.
        ledger = place.ledger
        threading.Thread(target=_open, args=(ledger,), name="liuyi-ledger", daemon=True).start()

        def listening() -> None:
            from rich.text import Text

            out = console()
            asked = "with an API key" if keys else "without an API key, on this machine only"
            where = " and this machine's other addresses" if is_everywhere(bound) else ""
            said = Text.assemble(described, " at ", (f"{url_of(bound)}/v1", "bold"), f"{where} {asked}")
            out.print(said, soft_wrap=True)
            out.print(f"  liuyi chat --url {url_of(bound)}    or any OpenAI client; Ctrl-C stops", style="dim")

        serve(make_server(app, gate=gate, drain_s=drain_s, listening=listening), bound)
    finally:
        bound.close()


def _open(ledger: Ledger) -> None:
    """Open the ledger before it is written to. A server answers without one, too, but says so at once."""
    try:
        ledger.answer("")
    except LiuyiError as error:
        logging.getLogger("liuyi.server").error("answers will not be recorded: %s", error)


def _tracing(url: str | None) -> Tracing | None:
    if url is None:
        return None
    from liuyi.infer.server.tracing import Tracing

    return Tracing.to(url)


def _template_in(path: Path | None) -> str | None:
    if path is None:
        return None
    from liuyi.model.chat import read_template

    return read_template(path)


def _named_folders(given: tuple[str, ...]) -> dict[str, str]:
    folders = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise click.BadParameter(f"'{text}' is not NAME=FOLDER", param_hint="--adapter")
        folders[name] = str(Path(folder).resolve())
    return folders


def _over(
    place: Home, ref: str | None, name: str | None, opening: Opening, guards: Guards, max_queue: int
) -> tuple[FastAPI, Gate, Text]:
    """The application over a model or application of ours, and what it says of itself."""
    from rich.text import Text

    from liuyi.cli.models import choose, open_backend

    chosen = choose(place, ref)
    name = name or chosen.name
    if name in (opening.adapters or {}):
        raise LiuyiError(f"'{name}' is the model's name, and an adapter's", hint="give one of them another name")
    backend = open_backend(chosen, place, opening, max_queue=max_queue)
    # The engine's process loads the model meanwhile.
    from liuyi.infer.server.app import create_app
    from liuyi.infer.server.gate import Gate

    gate = Gate()
    described = Text.assemble((name, "bold"), f" ({chosen.description})")
    return create_app({name: backend}, gate=gate, **guards), gate, described


def _before(backend: str, place: Home, ref: str | None, guards: Guards, max_queue: int) -> tuple[FastAPI, Gate, Text]:
    """The application before an engine that is running, and what it says of itself."""
    from rich.text import Text

    from liuyi.core.refs import resolve_artifact
    from liuyi.infer.server.gate import Gate
    from liuyi.infer.server.proxy import create_proxy
    from liuyi.infer.server.upstream import Place, Upstream

    upstream = Upstream(Place.parse(backend), model_digest=resolve_artifact(place, ref) if ref is not None else "")
    gate = Gate()
    app = create_proxy(upstream, gate=gate, max_queue=max_queue, **guards)
    return app, gate, Text.assemble((upstream.place.kind, "bold"), f" (engine at {upstream.place.shown})")
