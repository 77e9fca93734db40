"""OpenAI's API: models, chat, completions and embeddings."""

from fastapi import APIRouter, Request

from lushan.serving.hosted import HostedModel
from lushan.serving.schemas import ModelCard, ModelList
from lushan.serving.task_api import find_model

router = APIRouter()


@router.get("/models", summary="The models of this server")
async def list_models(request: Request) -> ModelList:
    """List what can be asked."""
    return ModelList(data=[_card(each) for each in request.app.state.models.values()])


@router.get("/models/{model}", summary="One model of this server")
async def get_model(request: Request, model: str) -> ModelCard:
    """Tell about one model."""
    return _card(find_model(request, model))


def _card(model: HostedModel) -> ModelCard:
    predictor = model.predictor
    return ModelCard(
        id=model.name,
        created=0,
        version=predictor.version,
        task=type(predictor.task).__module__.rpartition(".")[2],
        tuned=model.is_tuned,
        certified=model.certified,
        labels=list(predictor.state.labels),
    )
