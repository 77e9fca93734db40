"""Write a model folder as GGUF by the code of `lushan export`, or the prompts of the comparison."""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path

from measure import LONG_PROMPT_TOKENS, MOST_REQUESTS, NUM_TRIES, PROMPT_TOKENS

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.inference.predict import Predictor
from lushan.model_store.exports.gguf import Form
from lushan.model_store.merged import Merged
from lushan.model_store.tuned_model import TunedModel
from lushan.records import TaskState


def main() -> None:
    """Write the one or the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--gguf", help="how weights are stored; without it, prompts are written")
    parser.add_argument("--out", type=Path, required=True, help="folder, or the file of prompts")
    options = parser.parse_args()
    if options.gguf is None:
        write_prompts(options.model, options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    Form().write(untuned(options.model), options.out, quantise=options.gguf)


def write_prompts(model: Path, file: Path) -> None:
    """Cut the bundled texts into prompts of the same length, so that no engine has to pad."""
    rows = (files("lushan") / "demo_data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    text = ". ".join(json.loads(row)["text"] for row in rows)
    (encoded,) = Tokenizer.load(model).encode([text])
    sizes = {"short": (MOST_REQUESTS, PROMPT_TOKENS), "long": (NUM_TRIES - 1, LONG_PROMPT_TOKENS)}
    prompts: dict[str, list[list[int]]] = {}
    start = 0
    for name, (number, length) in sizes.items():
        prompts[name] = [encoded.ids[start + n * length :][:length] for n in range(number)]
        start += number * length
    if len(prompts["long"][-1]) < LONG_PROMPT_TOKENS:
        raise SystemExit(f"The bundled texts have {len(encoded.ids)} tokens: too few.")
    file.write_text(json.dumps(prompts), encoding="utf-8")


def untuned(model: Path) -> Merged:
    """Give a pretrained model as export takes a tuned one."""
    backbone = load_backbone(model, purpose="language", precision="fp32")
    limit = LengthLimit(backbone.facts.context_tokens, "error")
    predictor = Predictor(backbone, load_task("dialogue"), TaskState(), "generate", limit)
    meaning = TunedModel(
        task="dialogue",
        answer="generate",
        state=TaskState(),
        limit=limit,
        precision="fp32",
        adapter="full",
        base_model=model.name,
        base_digest="",
        tokenizer_fingerprint=backbone.tokenizer.fingerprint,
    )
    return Merged(predictor, meaning, model)


if __name__ == "__main__":
    main()
