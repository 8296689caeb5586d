"""Reading one prompt of 512 and of 4,096 tokens, beside the peers.

    python benchmarks/infer/prefill.py PEERS                  # int8: OpenVINO int8, llama.cpp Q8_0
    python benchmarks/infer/prefill.py PEERS --format bf16    # bf16: llama.cpp bf16, vLLM
    python benchmarks/infer/prefill.py PEERS --kv bf16        # int8, but ours with keys and values in bf16

The limit counts the matrix products of the weights alone: attention, which grows with the prompt, comes on top.
"""

from __future__ import annotations

from engines import Bar, Remote, Texts, best, engines, parser, show


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--format", choices=("int8", "bf16"), default="int8")
    made.add_argument("--kv", choices=("auto", "bf16", "int8"), default="auto")
    made.add_argument("--lengths", type=int, nargs="+", default=(512, 4096))
    asked = made.parse_args()
    bars = {
        "int8": (Bar("OpenVINO int8", 1.7), Bar("llama.cpp Q8_0", 4.0)),
        "bf16": (Bar("llama.cpp bf16", 2.5),),
    }[asked.format]
    peers = {"int8": ("OpenVINO int8", "llama.cpp Q8_0"), "bf16": ("llama.cpp bf16", "vLLM bf16")}[asked.format]
    texts = Texts(asked.peers / "models" / "fp32")
    with engines(asked, asked.format, peers, asked.kv) as started:
        limits = started["Liuyi"].ask("limits")
        for length in asked.lengths:
            prompts = [texts.take(length) for _ in range(asked.repeats + 1)]

            def rate(engine: Remote, repeat: int, prompts: list[list[int]] = prompts) -> float:
                return len(prompts[repeat]) / float(engine.ask("prefill", prompt=prompts[repeat])["seconds"])

            rates = best(started, asked.repeats, rate)
            notes = {"limit": f"{limits['gflops']:,.0f} GFLOP/s in {asked.format}", "machine": limits["machine"]}
            title = f"prefill of {length:,}, {asked.format}" + (f", cache in {asked.kv}" if asked.kv != "auto" else "")
            show(asked, title, rates, bars, limit=limits["prefill"], notes=notes)


if __name__ == "__main__":
    main()
