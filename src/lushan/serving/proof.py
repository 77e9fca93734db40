"""Whether another program that writes for a model answers as the model's certificate says; asked before anybody else asks."""

from contextlib import aclosing

from lushan.errors import LushanError, RunError
from lushan.inference.generate import Generated
from lushan.model_store.certificate import read_probes, replay
from lushan.model_store.probes import written_questions
from lushan.serving.hosted import REMEDY, HostedModel
from lushan.serving.worker import Worker


async def prove(model: HostedModel, worker: Worker) -> float | None:
    """Start what writes for a model, and hold it to the certificate; what is chosen and not written was held to it before.

    Args:
        model: The model, loaded.
        worker: Through which requests will reach what writes.

    Returns:
        The largest difference of a log-likelihood; None where nothing is written, our own engine writes, which was held to
        the certificate when the model was loaded, or there is no certificate.

    Raises:
        RunError: If it does not answer as the certificate says.
        ModelError: If it cannot be started.
    """
    predictor = model.predictor
    if worker.backend == "lushan" or not predictor.writes:
        return None
    await worker.prepare(model)
    if model.run is None or not model.certified:
        return None
    prompts, settings = written_questions(predictor, predictor.encode(read_probes(model.run)))
    found: list[Generated] = []
    for number, prompt_ids in enumerate(prompts):
        answer = Generated(number, 0)
        events = worker.generate(model, prompt_ids, settings)
        async with aclosing(events):
            async for event in events:
                answer.add(event)
        found.append(answer)
    try:
        return await worker.run(lambda: replay(model.folder, predictor, written=found))
    except LushanError as error:
        raise RunError(
            f"What writes for `{model.name}` does not answer as its certificate says. {error} {REMEDY}"
        ) from None
