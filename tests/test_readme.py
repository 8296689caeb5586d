"""Every command of the README is run, in its order, on a small budget; and the Chinese page has the same commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from waiting import wait_for

ROOT = Path(__file__).parent.parent
SMALL = {
    "docs.max_mb": 2,
    "docs.max_mb_per_source": 0.2,
    "desk.train_rows": 600,
    "desk.practice_rows": 60,
    "desk.test_items": 60,
    "desk.dev_items": 60,
    "desk.familiar_items": 20,
    "desk.typo_items": 20,
    "desk.outside_items": 20,
    "desk.compound_items": 10,
    "tokenizer.vocab_size": 1500,
    "tokens.max_tokens": 40000,
    "pretrain.hidden_size": 64,
    "pretrain.num_hidden_layers": 2,
    "bits.max_tokens": 20000,
    "sft.max_steps": 8,
    "samples.prompts": 16,
    "samples.samples": 2,
    "aligned.max_steps": 3,
    "speed.prompts": 2,
    "speed.repeats": 1,
    "speed.streams": 2,
}
BUDGET = " ".join(f"--set {name}={value}" for name, value in SMALL.items())
SMALL_SAMPLE = "--set pretrain.epochs=1 --set sft.epochs=1"
"""For the sample of `liuyi init`."""


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The fenced code blocks of one language in a page at the root of the project."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def commands(page: str = "README.md") -> list[str]:
    """All lines of the shell blocks, without comments."""
    lines = [line.partition("#")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]
    return [line for line in lines if line]


class User:
    """A person with a home of their own, in the folder where they cloned the project and in one beside it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "desk"
        self.folder.mkdir()
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LIUYI_", "MAKE", "PYTEST_"))
        } | {"HOME": str(home), "PATH": paths, "OMP_WAIT_POLICY": "passive"}

    def does(self, command: str, *, folder: Path | None = None, typed: str = "") -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            shlex.split(command),
            cwd=folder or self.folder,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def with_data(self) -> None:
        """Documents, conversations and a base model of their own."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from liuyi.model.tokenizer import train_bpe

        docs = self.folder / "docs"
        docs.mkdir()
        for number in range(12):
            (docs / f"{number}.md").write_text("".join(f"Rule {number}.{i}: keep a copy of it.\n" for i in range(30)))
        with (self.folder / "conversations.jsonl").open("w", encoding="utf-8") as file:
            for number in range(40):
                turns = [("user", f"Where is order {number}?"), ("assistant", f"Order {number} is on its way.")]
                file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
        base = self.folder / "SmolLM2-135M-Instruct"
        tokenizer = train_bpe(["Where is the order? It is on its way."] * 8, 300)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
        )
        LlamaForCausalLM(config).save_pretrained(base)
        tokenizer.save(base)


@pytest.fixture
def server(user: User) -> Iterator[User]:
    """`liuyi serve` as the README has it."""
    process = subprocess.Popen(
        ["liuyi", "serve"], cwd=user.folder, env=user.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def is_up() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read().decode()
        with suppress(httpx.HTTPError):
            return httpx.get("http://127.0.0.1:8000/health", timeout=5).status_code == 200
        return False

    try:
        wait_for(is_up)
        yield user
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    user = User(tmp_path_factory.mktemp("user"))
    user.with_data()
    return user


@pytest.fixture(scope="module")
def quickstart(user: User) -> str:
    """What the quickstart printed, as whoever installed with `make` starts it or as others do."""
    if (ROOT / ".venv/.base").exists():
        return user.does(f"make quickstart ARGS='{BUDGET}'", folder=ROOT)
    return user.does(f"liuyi run quickstart {BUDGET}")


def test_both_languages_have_the_same_code() -> None:
    for language in ("sh", "python", "yaml"):
        strip = [re.sub(r"#.*", "", block).split() for block in blocks(language)]
        assert strip == [re.sub(r"#.*", "", block).split() for block in blocks(language, "README.zh-CN.md")]


def test_the_first_commands_come_early() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    assert any(line.startswith("make quickstart") for line in head)
    assert any(line.startswith("make test") for line in head)


def test_the_recipe_of_the_page_is_part_of_the_quickstart() -> None:
    import yaml

    recipe = yaml.safe_load((ROOT / "src/liuyi/recipes/quickstart.yaml").read_text(encoding="utf-8"))
    for block in blocks("yaml"):
        for name, step in yaml.safe_load(block).items():
            assert step.items() <= recipe["steps"][name].items()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("quickstart")
class TestCommands:
    """In the page's order. Each needs the quickstart and none another, for they may be shared out among processes."""

    def test_quickstart(self, user: User, quickstart: str) -> None:
        assert commands()[:2] == ["make quickstart", "make test"]
        assert "report.html" in quickstart
        assert "pytest" in user.does("make -n test", folder=ROOT)

    def test_a_second_run_finds_everything_done(self, user: User) -> None:
        printed = user.does(f"liuyi run quickstart {BUDGET}")
        steps = re.findall(r"^(\S) +\d+/\d+ ", printed, re.M)
        assert steps
        assert set(steps) == {"="}

    def test_look_and_talk(self, user: User) -> None:
        page = commands()
        assert page[2:7] == [
            ". .venv/bin/activate",
            "liuyi report",
            "liuyi lineage last/app",
            "liuyi chat",
            "liuyi serve",
        ]
        assert "bits per byte" in user.does("liuyi report").lower()
        lineage = user.does("liuyi lineage last/app")
        assert "PSF-2.0" in lineage
        assert "home-assistant-intents" in lineage
        assert user.does("liuyi chat", typed="turn on the kitchen lights\n").strip()

    def test_the_openai_client(self, server: User) -> None:
        (code,) = blocks("python")
        printed = server.does(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}")
        json.loads(printed)

    def test_the_other_commands(self, user: User) -> None:
        for command in commands()[7:]:
            if command.startswith("liuyi run quickstart"):
                command += f" {BUDGET} --until tokenizer"
            if command.startswith("cd "):
                folder, _, command = command.removeprefix("cd ").partition(" && ")
                printed = user.does(f"{command} {SMALL_SAMPLE}", folder=user.folder / folder)
                assert "Effect report" in printed
                continue
            user.does(command)
        for recipe in ("support", "tuned"):
            user.does(f"liuyi run {recipe}/recipe.yaml --check")
        assert (user.folder / "tuned-model" / "model.safetensors").exists()
