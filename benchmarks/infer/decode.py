"""One stream, token by token, beside the peers; and how often each format's best next token is that of fp32.

    python benchmarks/infer/decode.py PEERS                  # int8: llama.cpp Q8_0, OpenVINO int8
    python benchmarks/infer/decode.py PEERS --format bf16    # bf16: llama.cpp bf16, vLLM

Agreement is measured with the text given (teacher forcing), on the same text for all, against our own fp32.
"""

from __future__ import annotations

from engines import Bar, Remote, Texts, best, engines, parser, show

AGREEMENT_TEXTS, AGREEMENT_TOKENS = 8, 512


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--format", choices=("int8", "bf16"), default="int8")
    made.add_argument("--prompt-tokens", type=int, default=64)
    made.add_argument("--new-tokens", type=int, default=64)
    asked = made.parse_args()
    peers, bars = {
        "int8": (("llama.cpp Q8_0", "OpenVINO int8"), (Bar("llama.cpp Q8_0", 1.8), Bar("OpenVINO int8", 1.8))),
        "bf16": (("llama.cpp bf16", "vLLM bf16"), (Bar("llama.cpp bf16", 1.4),)),
    }[asked.format]
    texts = Texts(asked.peers / "models" / "fp32")
    passages = [texts.take(AGREEMENT_TOKENS) for _ in range(AGREEMENT_TEXTS)]
    with engines(asked, "fp32", ()) as reference:
        exact = reference["Liuyi"].ask("agreement", texts=passages)["best"]
    prompts = [texts.take(asked.prompt_tokens) for _ in range(asked.repeats + 1)]

    def rate(engine: Remote, repeat: int) -> float:
        seconds = engine.ask("decode", prompt=prompts[repeat], tokens=asked.new_tokens)["rest_s"]
        return (asked.new_tokens - 1) / float(seconds)

    with engines(asked, asked.format, peers) as started:
        limits = started["Liuyi"].ask("limits")
        rates = best(started, asked.repeats, rate)
        agreement = {
            name: _agreement(exact, started[name].ask("agreement", texts=passages)["best"])
            for name in ("Liuyi", peers[0])
            if name in started
        }
    notes = {
        "best token as in fp32": ", ".join(f"{name} {share:.2%}" for name, share in agreement.items()),
        "limit": f"{limits['memory_gb_per_s']:.1f} GB/s of memory over {limits['weight_mb']:.0f} MB of weights",
        "machine": limits["machine"],
    }
    show(asked, f"decode, one stream, {asked.format}", rates, bars, limit=limits["decode"], notes=notes)


def _agreement(exact: list[list[int]], found: list[list[int]]) -> float:
    pairs = [pair for one, other in zip(exact, found, strict=True) for pair in zip(one, other, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs)


if __name__ == "__main__":
    main()
