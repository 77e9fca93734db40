"""From hidden states to answers: the class layer of each architecture, and the vocabulary.

The layers are those of `transformers`' own sequence- and token-classification models, so that what is saved
loads there unchanged. Only the pooling is ours: by explicit index, never by looking for padding.

Shapes: T tokens, N documents, D width, C classes, K chosen positions, V vocabulary.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from lushan.backbones.frozen import Position
from lushan.backbones.inspect import ENCODERS, ModelFacts
from lushan.backbones.load import Purpose
from lushan.backbones.packed_linear import PackedLinear
from lushan.backbones.quiet import quiet_transformers
from lushan.backbones.token_models import is_token_model, know_token_model
from lushan.errors import ModelError
from lushan.records import Batch

_MOST_LOGITS = 1 << 25
"""Numbers of a table of logits that is held at once while a loss is taken: 128 MiB in float32."""


def check_layer(folder: Path, facts: ModelFacts, purpose: Purpose) -> None:
    """Refuse a model that cannot answer by a layer of this purpose, before its weights are read.

    Args:
        folder: The model folder.
        facts: What it holds.
        purpose: What the layer is for.

    Raises:
        ModelError: If its architecture has no such layer, or one that is not known here.
    """
    if purpose == "tag":
        know_token_model(folder)
    if purpose != "classify":
        return
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"`{folder.name}`: transformers has no class layer for `{facts.model_type}`. Use `--answer generate`, or "
            "another model."
        )
    if facts.family == "encoder":
        with quiet_transformers(), torch.device("meta"):  # takes no memory
            model = AutoModelForSequenceClassification.from_config(config)
            class_logits(model.eval(), torch.empty(1, facts.width), _first_token())


def _first_token() -> Batch:
    """A document of one token."""
    zero_N = torch.zeros(1, dtype=torch.long)
    zero_1T = zero_N[None]
    return Batch(zero_1T, zero_1T, zero_1T, first_N=zero_N, last_N=zero_N, features=())


def class_logits(
    model: nn.Module, hidden_TD: Tensor, batch: Batch, *, dropout: float = 0.0
) -> Tensor:
    """Score every class for every document; (N, C), float32.

    Decoders are read at their last token, which has seen the whole text; encoders as their own
    class layer was made: at the first token, or at the mean of all.

    Raises:
        ModelError: If the architecture's class layer is not known here.
    """
    head: Any = model
    if hasattr(head, "score"):
        pooled_ND = hidden_TD[batch.last_N]
        return _linear(head.score, functional.dropout(pooled_ND, dropout, training=model.training))
    pooled_ND = _encoder_pooled(head, hidden_TD, batch)
    pooled_ND = functional.dropout(pooled_ND, dropout, training=model.training)
    return _linear(head.classifier, pooled_ND)


def token_logits(model: nn.Module, hidden_KD: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Score every class at chosen positions; (K, C), float32.

    Decoders get no other dropout than `dropout`; encoders that of their own layer too.

    Args:
        model: A token-classification model of `transformers`.
        hidden_KD: Hidden states of the positions that are needed, and no others.
        dropout: In front of the layer, in training.
    """
    head: Any = model
    if hasattr(head, "head") and hasattr(head, "drop"):  # modernbert
        hidden_KD = head.drop(head.head(hidden_KD))
    elif not hasattr(head, "score") and head.config.model_type in ENCODERS:
        hidden_KD = head.dropout(hidden_KD)
    hidden_KD = functional.dropout(hidden_KD, dropout, training=model.training)
    return _linear(head.score if hasattr(head, "score") else head.classifier, hidden_KD)


def read_position(model: nn.Module) -> Position:
    """Which hidden states of a document its layer reads."""
    if is_token_model(model):
        return "all"
    head: Any = model
    if hasattr(head, "score"):
        return "last"
    takes_first = (
        _takes_first(head)
        or hasattr(head, "pre_classifier")
        or getattr(head.base_model, "pooler", None) is not None
        or getattr(head.config, "classifier_pooling", None) == "cls"
    )
    return "first" if takes_first else "all"


def _takes_first(model: Any) -> bool:  # noqa: ANN401
    """Whether an encoder's class layer looks for the first token itself, as those of roberta and electra do."""
    return hasattr(getattr(model, "classifier", None), "out_proj")


def _linear(layer: nn.Module, pooled_ND: Tensor) -> Tensor:
    # Class layers stay in float32: in bf16 two classes would often tie.
    weight = next(layer.parameters())
    return layer(pooled_ND.to(weight.dtype)).float()


def _encoder_pooled(model: Any, hidden_TD: Tensor, batch: Batch) -> Tensor:  # noqa: ANN401
    """What the class layer of an encoder is given; (N, D), or (N, 1, D) where it looks for the first token itself."""
    core, first_ND = model.base_model, hidden_TD[batch.first_N]
    if _takes_first(model):
        return first_ND[:, None]
    if hasattr(model, "pre_classifier"):  # distilbert
        return model.dropout(functional.relu(model.pre_classifier(first_ND)))
    if getattr(core, "pooler_activation", None) is not None:  # albert
        return model.dropout(core.pooler_activation(core.pooler(first_ND)))
    if getattr(core, "pooler", None) is not None:  # bert
        return model.dropout(core.pooler(first_ND[:, None]))
    if hasattr(model, "head") and hasattr(model, "drop"):  # modernbert
        if model.config.classifier_pooling == "cls":
            pooled_ND = first_ND
        else:
            pooled_ND = mean_over_tokens(hidden_TD, batch)
        return model.drop(model.head(pooled_ND))
    raise ModelError(
        f"The class layer of `{model.config.model_type}` is not supported. "
        "Use a decoder, or an encoder such as bert, roberta, electra, distilbert, albert or modernbert."
    )


def mean_over_tokens(hidden_TD: Tensor, batch: Batch) -> Tensor:
    """Average the hidden states of each document; (N, D)."""
    lengths_N = (batch.last_N - batch.first_N + 1).float()
    # In bf16 a sum stops growing after some hundred tokens.
    sums_ND = torch.zeros(len(lengths_N), hidden_TD.shape[1], device=hidden_TD.device)
    sums_ND = sums_ND.index_add(0, batch.document_ids_1T[0], hidden_TD.float())
    return (sums_ND / lengths_N[:, None]).to(hidden_TD.dtype)


def token_log_likelihoods(model: nn.Module, hidden_KD: Tensor, targets_K: Tensor) -> Tensor:
    """Log-probability of the token that follows each chosen position; (K,), float32.

    Logits are made part after part, and again for the gradient, so that a large table is never held.

    Args:
        model: A causal language model of `transformers`.
        hidden_KD: Hidden states of the positions, and no others.
        targets_K: The token that follows each.
    """
    layer: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    size = max(1, _MOST_LOGITS // layer.out_features)

    def of_part(part_KD: Tensor, following_K: Tensor) -> Tensor:
        logits_KV = vocabulary_logits(model, part_KD)
        return -functional.cross_entropy(logits_KV, following_K, reduction="none")

    parts = list(zip(hidden_KD.split(size), targets_K.split(size), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([of_part(*part) for part in parts])
    found = [checkpoint(of_part, *part, use_reentrant=False) for part in parts]
    return torch.cat(cast("list[Tensor]", found))


def vocabulary_logits(model: nn.Module, hidden_KD: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Score the vocabulary, or only some of its tokens, at chosen positions; (K, V or len(tokens)), float32.

    Args:
        model: A causal language model of `transformers`.
        hidden_KD: Hidden states of the positions that are needed, and no others.
        tokens: Token ids to score; None scores all.
    """
    layer: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    bias_V = layer.bias if tokens is None or layer.bias is None else layer.bias[tokens]
    if not isinstance(layer, PackedLinear):
        weight_VD = layer.weight if tokens is None else layer.weight[tokens]
    elif tokens is None and not torch.is_grad_enabled():
        return _scaled(model, layer.product.logits(hidden_KD, bias_V))
    else:
        rows_VD = layer.weight if tokens is None else layer.product.rows(tokens)
        weight_VD = rows_VD.to(hidden_KD.dtype)
    return _scaled(model, functional.linear(hidden_KD, weight_VD, bias_V).float())


def _scaled(model: nn.Module, logits: Tensor) -> Tensor:
    scale, softcap = logit_scale(model), logit_softcap(model)
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def logit_scale(model: nn.Module) -> float:
    """What the vocabulary's scores are multiplied by: not 1 in cohere and granite, nor in HyperCLOVA X.

    The latter multiplies by what the others divide by, under the same name.
    """
    config: Any = model.config
    scaling = getattr(config, "logits_scaling", None) or 1.0
    if config.model_type.startswith("hyperclovax"):
        return scaling
    return (getattr(config, "logit_scale", None) or 1.0) / scaling


def logit_softcap(model: nn.Module) -> float | None:
    """What the vocabulary's scores are bent to stay below, as in gemma2; None where they are not."""
    config: Any = model.config
    return getattr(config, "final_logit_softcapping", None)
