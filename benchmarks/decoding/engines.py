"""Who is compared: one table of engines, each with the script that drives it and the command that makes what it loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Environment = Literal[
    "lushan", "llamacpp", "openvino", "ctranslate2", "onnx", "transformers", "vllm"
]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine with one form of the weights."""

    name: str
    title: str
    script: str
    form: str
    environment: Environment
    """Folder of a virtual environment; ours is the one that runs the comparison."""
    bits: int
    """Of a weight; decides with whom an engine is compared."""
    makes: tuple[str, ...] = ()
    """Command that writes the folder `{out}` from the model folder `{model}`; without one, that folder itself is loaded."""
    makes_in: str = ""
    """Environment of that command."""
    folder: str = ""
    """Name of what is made, where two engines load the same; without one, the engine's."""
    file: str = ""
    """What is loaded of the folder, if not all."""


_OPTIMUM = ("optimum-cli", "export", "openvino", "--task", "text-generation-with-past")
_OPTIMUM += ("--model", "{model}", "{out}", "--weight-format")
_BUILDER = ("python", "-m", "onnxruntime_genai.models.builder", "-i", "{model}", "-o", "{out}")
_BUILDER += ("-e", "cpu", "-c", "{out}-cache", "-p")
_CTRANSLATE2 = ("ct2-transformers-converter", "--model", "{model}", "--output_dir", "{out}")
_GGUF = ("python", "ours_forms.py", "--model", "{model}", "--out", "{out}", "--gguf")

ENGINES = (
    Engine(
        name="lushan-bf16",
        title="Lushan, bf16",
        script="engine_lushan.py",
        form="bf16",
        environment="lushan",
        bits=16,
    ),
    Engine(
        name="lushan-int8",
        title="Lushan, int8",
        script="engine_lushan.py",
        form="int8",
        environment="lushan",
        bits=8,
    ),
    Engine(
        name="lushan-int4",
        title="Lushan, int4",
        script="engine_lushan.py",
        form="int4",
        environment="lushan",
        bits=4,
    ),
    Engine(
        name="llamacpp-q8_0",
        title="llama.cpp, Q8_0",
        script="engine_llamacpp.py",
        form="q8_0",
        environment="llamacpp",
        bits=8,
        makes=(*_GGUF, "q8_0"),
        makes_in="lushan",
        file="model.gguf",
    ),
    Engine(
        name="llamacpp-q4_0",
        title="llama.cpp, Q4_0",
        script="engine_llamacpp.py",
        form="q4_0",
        environment="llamacpp",
        bits=4,
        makes=(*_GGUF, "q4_0"),
        makes_in="lushan",
        file="model.gguf",
    ),
    Engine(
        name="openvino-int8",
        title="OpenVINO GenAI, int8",
        script="engine_openvino.py",
        form="int8",
        environment="openvino",
        bits=8,
        makes=(*_OPTIMUM, "int8"),
        makes_in="optimum",
    ),
    Engine(
        name="openvino-exact",
        title="OpenVINO GenAI, int8 weights alone",
        script="engine_openvino.py",
        form="int8-exact",
        environment="openvino",
        bits=8,
        makes=(*_OPTIMUM, "int8"),
        makes_in="optimum",
        folder="openvino-int8",
    ),
    Engine(
        name="openvino-int4",
        title="OpenVINO GenAI, int4",
        script="engine_openvino.py",
        form="int4",
        environment="openvino",
        bits=4,
        # Its usual groups of 128 do not divide widths of 576 and 960.
        makes=(*_OPTIMUM, "int4", "--group-size", "64"),
        makes_in="optimum",
    ),
    Engine(
        name="ctranslate2-int8",
        title="CTranslate2, int8",
        script="engine_ctranslate2.py",
        form="int8",
        environment="ctranslate2",
        bits=8,
        makes=(*_CTRANSLATE2, "--quantization", "int8"),
        makes_in="ctranslate2",
    ),
    Engine(
        name="onnx-int8",
        title="ONNX Runtime GenAI, int8",
        script="engine_onnx.py",
        form="int8",
        environment="onnx",
        bits=8,
        makes=(*_BUILDER, "int8"),
        makes_in="onnx",
    ),
    Engine(
        name="onnx-int4",
        title="ONNX Runtime GenAI, int4",
        script="engine_onnx.py",
        form="int4",
        environment="onnx",
        bits=4,
        makes=(*_BUILDER, "int4"),
        makes_in="onnx",
    ),
    Engine(
        name="transformers-bf16",
        title="`transformers`, bf16, one batch",
        script="engine_transformers.py",
        form="bf16",
        environment="transformers",
        bits=16,
    ),
    Engine(
        name="transformers-continuous",
        title="`transformers`, bf16, continuous batching",
        script="engine_transformers.py",
        form="bf16-continuous",
        environment="transformers",
        bits=16,
    ),
    Engine(
        name="vllm-bf16",
        title="vLLM for CPUs, bf16",
        script="engine_vllm.py",
        form="bf16",
        environment="vllm",
        bits=16,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """One way to ask a tuned classifier."""

    name: str
    title: str
    form: str
    environment: Environment


SCORERS = (
    Scorer(name="score-lushan", title="Lushan", form="lushan", environment="lushan"),
    Scorer(
        name="score-padded",
        title="`transformers`, fp32, padded",
        form="padded-fp32",
        environment="transformers",
    ),
    Scorer(
        name="score-sorted",
        title="`transformers`, bf16, sorted by length",
        form="sorted-bf16",
        environment="transformers",
    ),
    Scorer(
        name="score-openvino",
        title="OpenVINO, int8 weights, float32 products, sorted by length",
        form="openvino-int8",
        environment="openvino",
    ),
)
"""All run `score.py`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio that Lushan is to reach: its speed to a rival's, or a rival's memory to its own."""

    work: str
    title: str
    rivals: tuple[str, ...] = ()
    """Names of engines; without any, the best of all with `least_bits`."""
    least_bits: int = 0
    ours: tuple[str, ...] = ()
    """Which forms of ours may stand in; without any, the best of them with `least_bits`."""
    ratio: float


TARGETS = (
    Target(
        work="decode_1",
        title="decode, 1 request",
        rivals=("llamacpp-q8_0",),
        least_bits=8,
        ratio=0.9,
    ),
    Target(work="decode_8", title="decode, 8 requests together", least_bits=8, ratio=1.3),
    Target(work="decode_32", title="decode, 32 requests together", ratio=1.5),
    Target(work="prefill", title="prefill of 512 tokens", ratio=1.2),
    Target(work="first_token_seconds", title="first token after 32 tokens", ratio=1.0),
    Target(
        work="rss_bytes_after_32",
        title="resident memory, at most 8 bits a weight",
        rivals=("llamacpp-q8_0",),
        ours=("lushan-int8",),
        ratio=0.67,
    ),
    *(
        Target(
            work="scoring",
            title="scoring short texts with a tuned head",
            rivals=(rival,),
            ours=("score-lushan",),
            ratio=ratio,
        )
        for rival, ratio in (("score-padded", 6), ("score-sorted", 1.8), ("score-openvino", 2))
    ),
)
