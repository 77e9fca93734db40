"""A plain Hugging Face folder without an adapter: `transformers`, vLLM and Lushan load it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lushan.atomic import write_text
from lushan.backbones.chat import CHAT_TEMPLATE_FILE, read_chat_template
from lushan.backbones.inspect import describe, read_json
from lushan.backbones.load import DTYPES, cast_weights
from lushan.backbones.quiet import quiet_transformers
from lushan.backbones.token_models import know_token_model
from lushan.backbones.tokenizer import Tokenizer as ModelTokenizer
from lushan.errors import ModelError
from lushan.inference.predict import Predictor
from lushan.model_store import exports
from lushan.model_store.exports import (
    NUM_LIKELIEST,
    Encode,
    Follow,
    Likeliest,
    Score,
    TextRules,
    Tolerance,
)
from lushan.model_store.merged import Merged
from lushan.model_store.tuned_model import load_predictor, save_model

_CLASSES: dict[str, Any] = {
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}


class Form(exports.Form):
    """Weights in the precision of the run; the labels stand in `config.json`."""

    program = "transformers"
    tolerances: ClassVar = {"none": Tolerance(1e-3, 0.98, 0.97, 0.01)}

    def write(self, merged: Merged, folder: Path, *, quantise: str) -> list[str]:
        """Write what `lushan tune --adapter full` would have."""
        backbone = merged.predictor.backbone
        cast_weights(backbone.model, DTYPES[merged.meaning.precision])
        whole = folder / "whole"
        save_model(whole, backbone, replace(merged.meaning, adapter="full"))
        for file in whole.iterdir():
            file.rename(folder / file.name)
        whole.rmdir()
        # An adapter's base may have no template; the run then keeps the one that it was tuned with.
        if (template := read_chat_template(merged.folder)) and not read_chat_template(folder):
            write_text(folder / CHAT_TEMPLATE_FILE, template)
        return list(backbone.tokenizer.notes)

    def reread(self, merged: Merged, folder: Path) -> Predictor:
        """Load the folder as a tuned model."""
        return load_predictor(folder, precision="fp32")

    def read_rules(self, folder: Path) -> TextRules:
        """Read tokenizer and configuration."""
        facts = describe(folder)
        config = read_json(folder / "generation_config.json")
        named = config.get("eos_token_id")
        stop_ids = (named,) if isinstance(named, int) else tuple(named or ())
        return TextRules(ModelTokenizer.load(folder), facts.context_tokens, stop_ids)

    def open_scores(self, folder: Path) -> Score | None:
        """Load the class that `config.json` names, without any code of Lushan's."""
        model = _load(folder)
        if model.can_generate():
            return None

        def score(ids_BL: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
            mask = torch.from_numpy(mask_BL)
            # A class layer reads the last token that is not the padding token, whatever the mask says.
            ids = torch.from_numpy(ids_BL).masked_fill(mask == 0, model.config.pad_token_id or 0)
            with torch.inference_mode():
                return model(input_ids=ids, attention_mask=mask).logits.numpy()

        return score

    def open_follower(self, folder: Path) -> tuple[Follow, Encode] | None:
        """Load the causal language model, and the raw tokenizer: what `AutoTokenizer` does otherwise was told."""
        model = _load(folder)
        if not model.can_generate():
            return None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()  # as `transformers` has it, whatever the file says
        tokenizer.no_padding()

        def follow(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> list[Likeliest]:
            ids_1L = torch.tensor([[*prompt_ids, *answer_ids[:-1]]])
            with torch.inference_mode():
                logits_LV = model(input_ids=ids_1L).logits[0, len(prompt_ids) - 1 :]
                logits_LV = logits_LV[: len(answer_ids)]
            found = logits_LV.log_softmax(dim=-1).topk(NUM_LIKELIEST)
            return [
                list(zip(*each, strict=True))
                for each in zip(found.indices.tolist(), found.values.tolist(), strict=True)
            ]

        return follow, lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def read_labels(self, folder: Path) -> list[str] | None:
        """Read `id2label`."""
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        return [config.id2label[number] for number in sorted(config.id2label)]


def _load(folder: Path) -> Any:  # noqa: ANN401
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    name = config.architectures[0]
    suffix = next(suffix for suffix in _CLASSES if name.endswith(suffix))
    if suffix == "ForTokenClassification":
        know_token_model(folder)
    with quiet_transformers():
        model, info = _CLASSES[suffix].from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):  # transformers draws them at random
        raise ModelError(f"`{folder}` lacks weights, such as `{missing[0]}`.")
    return model.eval()
