"""Zero-shot answers of an encoder, which cannot write: the label whose name means most like the text.

Texts and label names become the mean of their hidden states; their cosines, sharpened, become probabilities
(the recipe of sentence-transformers' zero-shot examples; Reimers and Gurevych 2019, section 3).

Shapes: D width, C labels, E examples.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lushan.backbones.encoding import LengthLimit, encode_rendered
from lushan.backbones.load import Backbone
from lushan.inference.embedding import embed
from lushan.records import Example, Prediction, Rendered, TaskState

_SHARPNESS = 20.0
"""Cosines of sentence encoders lie close together; 20 is the scale that they are trained with."""

_MULTI_LABEL_FROM_COSINE = 0.3


def predict_by_similarity(
    backbone: Backbone, examples: Sequence[Example], state: TaskState, *, limit: LengthLimit
) -> list[Prediction]:
    """Answer every example, in order, with an untuned encoder.

    Args:
        backbone: An encoder, loaded with the purpose `embed`.
        examples: What is asked.
        state: The labels to choose from.
        limit: Longest text; longer ones are cut here whatever the policy, since only their mean counts.
    """
    names = [label.replace("_", " ") for label in state.labels]
    labels_CD, _ = _embed(backbone, names, limit)
    texts_ED, num_cut = _embed(backbone, [each.text for each in examples], limit)
    cosines_EC = texts_ED @ labels_CD.T
    return [
        replace(_prediction(example, row, state), num_cut_tokens=num_tokens)
        for example, row, num_tokens in zip(examples, cosines_EC, num_cut, strict=True)
    ]


def _prediction(example: Example, cosines_C: np.ndarray, state: TaskState) -> Prediction:
    scores_C = _SHARPNESS * cosines_C
    if state.multi_label:
        chosen = tuple(
            label
            for label, cosine in zip(state.labels, cosines_C, strict=True)
            if cosine >= _MULTI_LABEL_FROM_COSINE
        )
        values_C = 1 / (1 + np.exp(_SHARPNESS * _MULTI_LABEL_FROM_COSINE - scores_C))
        return Prediction(
            example.id,
            chosen,
            dict(zip(state.labels, values_C.tolist(), strict=True)),
            float(np.log(np.maximum(values_C, 1 - values_C)).sum()),
        )
    values_C = np.exp(scores_C - scores_C.max())
    values_C /= values_C.sum()
    best = int(values_C.argmax())
    return Prediction(
        example.id,
        state.labels[best],
        dict(zip(state.labels, values_C.tolist(), strict=True)),
        float(np.log(values_C[best])),
    )


def _embed(
    backbone: Backbone, texts: Sequence[str], limit: LengthLimit
) -> tuple[np.ndarray, list[int]]:
    """Unit vectors of texts, (E, D), float32; and how many tokens were cut from each."""
    windows = encode_rendered(
        [Rendered(text, cuttable=(0, len(text))) for text in texts],
        backbone.tokenizer,
        limit=LengthLimit(limit.max_tokens, "truncate"),
        places=[text[:40] for text in texts],
    )
    vectors_ED = embed(backbone, [parts[0].token_ids for parts in windows])
    return vectors_ED, [parts[0].num_cut_tokens for parts in windows]
