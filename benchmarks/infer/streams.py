"""Sixteen requests at once, 512 tokens in and 128 out, from the first submitted to the last answered.

python benchmarks/infer/streams.py PEERS                  # int8: llama.cpp Q8_0, OpenVINO int8, vLLM bf16
python benchmarks/infer/streams.py PEERS --format bf16    # bf16: llama.cpp bf16, vLLM bf16
python benchmarks/infer/streams.py PEERS --temperature 0.7 --top-p 0.9    # drawn; without llama.cpp, no bars
"""

from __future__ import annotations

from engines import Bar, Remote, Texts, best, engines, parser, show


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--format", choices=("int8", "bf16"), default="int8")
    made.add_argument("--streams", type=int, default=16)
    made.add_argument("--input-tokens", type=int, default=512)
    made.add_argument("--output-tokens", type=int, default=128)
    made.add_argument("--temperature", type=float, default=0.0)
    made.add_argument("--top-p", type=float, default=1.0)
    asked = made.parse_args()
    peers, bars = {
        "int8": (
            ("llama.cpp Q8_0", "vLLM bf16", "OpenVINO int8"),
            (Bar("llama.cpp Q8_0", 3.3), Bar("vLLM bf16", 3.3)),
        ),
        "bf16": (("llama.cpp bf16", "vLLM bf16"), (Bar("llama.cpp bf16", 2.2),)),
    }[asked.format]
    if asked.temperature:
        peers, bars = tuple(peer for peer in peers if not peer.startswith("llama.cpp")), ()
    texts = Texts(asked.peers / "models" / "fp32")
    prompts = [[texts.take(asked.input_tokens) for _ in range(asked.streams)] for _ in range(asked.repeats + 1)]

    def rate(engine: Remote, repeat: int) -> float:
        sampling = {"temperature": asked.temperature, "top_p": asked.top_p}
        told = engine.ask("streams", prompts=prompts[repeat], tokens=asked.output_tokens, **sampling)
        return asked.streams * asked.output_tokens / float(told["seconds"])

    with engines(asked, asked.format, peers) as started:
        rates = best(started, asked.repeats, rate)
    title = f"{asked.streams} streams, {asked.input_tokens} in, {asked.output_tokens} out, {asked.format}"
    if asked.temperature:
        title += f", temperature {asked.temperature:g}, top-p {asked.top_p:g}"
    show(asked, title, rates, bars, unit="output tokens/s")


if __name__ == "__main__":
    main()
