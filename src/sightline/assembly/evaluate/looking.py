"""Asks a model under a ladder of controls, and whether it prefers true texts because of the image.

The evaluations are those of `eval`, stored in the same folders: what is there is not computed again, and `eval` finds its control.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sightline.assembly.evaluate.answers import ModelAnswers
from sightline.assembly.evaluate.evaluate import Evaluation, evaluate
from sightline.assembly.evaluate.gain import small_image
from sightline.assembly.evaluate.opened import OpenedModel, open_model
from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import ConfigError, SkipLimitError, UsageError
from sightline.evaluation.controls import TEXT, without_images
from sightline.evaluation.counterfactual import KINDS, Counterfactual, counterfactuals
from sightline.evaluation.predict import predict
from sightline.evaluation.probes.looking import (
    FLOOR,
    LADDER,
    Condition,
    Flip,
    LookingFindings,
    Preference,
    answers_of,
    looking,
    preference,
    verdict_control,
)
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query
from sightline.generation.decode import DecodingConfig
from sightline.runtime.device import process_settings_restored
from sightline.runtime.logs import logger


@process_settings_restored()
def look(
    spec: EvalSpec,
    model: str,
    checkpoint: str = "last",
    device: str = "auto",
    threads: int | None = None,
    controls: Sequence[str] = LADDER,
    floor: str | None = None,
    shown: int = 12,
) -> LookingFindings:
    """Finds out whether a model looks at the image in a task.

    Args:
        spec: task, data and options; its own control is left aside.
        model, checkpoint, device, threads: see `open_model`.
        controls: the ladder.
        floor: a run that was trained with shuffled images, which shows what can be scored without seeing any.
        shown: number of items that are kept to be looked at.

    Raises:
        UsageError, DataError, ConfigError, SkipLimitError: as `evaluate` of the images as they are; a control that cannot be asked
            (a blur where there is no encoder) is a step without a score.
    """
    opened = open_model(model, checkpoint, spec.features, device, threads)

    def asked(control: str | None) -> Evaluation:
        own = spec.model_copy(update={"control": control})
        return evaluate(own, model, checkpoint, device=device, threads=threads, opened=opened)

    seen = asked(None)
    done: dict[str, Evaluation] = {}
    missing: dict[str, str] = {}
    for control in controls:
        try:
            done[control] = asked(control)
        except (UsageError, ConfigError, SkipLimitError) as error:
            logger.warning("control %s: %s", control, error.message)
            missing[control] = error.message
    if floor is not None:
        done[FLOOR] = evaluate(spec.model_copy(update={"control": None}), floor, device=device, threads=threads)
    conditions = {name: _condition(found) for name, found in done.items()}
    dataset, info = open_dataset(spec.data), seen.task.headline
    opened.runtime.apply()
    return looking(
        spec.task,
        info,
        _condition(seen),
        conditions,
        missing,
        preferences=_preferences(opened, dataset, seen),
        flips=_flips(dataset, seen, done, shown),
        skipped=seen.predicted.skipped,
        resamples=spec.resamples,
    )


def _condition(found: Evaluation) -> Condition:
    answers = answers_of(found.queries, found.predicted.predictions)
    return Condition(found.scores[found.task.headline.name], found.items_json(), answers)


# Items that the image changes -------------------------------------------------------------------------------------------------


def _flips(dataset: Dataset, seen: Evaluation, done: Mapping[str, Evaluation], count: int) -> list[Flip]:
    """Items with another answer under the control of the verdict: those that the image helps most, then those that it harms."""
    name = verdict_control(done)
    if name is None:
        return []
    info = seen.task.headline
    sign = 1.0 if info.higher_is_better else -1.0
    scores, without = _values(seen), _values(done[name])
    answers = {control: _readable_answers(found) for control, found in (("image", seen), *done.items())}
    folded = answers_of(seen.queries, seen.predicted.predictions), answers_of(done[name].queries, done[name].predicted.predictions)
    gains = {
        key: sign * (value - without[key]) for key, value in scores.items() if key in without and folded[0][key] != folded[1][key]
    }
    order = sorted(gains, key=lambda key: -gains[key])
    harmed = [key for key in reversed(order) if gains[key] < 0][: count // 3]
    helped = [key for key in order if key not in harmed][: count - len(harmed)]
    queries = {query.id: query for query in seen.queries}
    return [
        Flip(
            id=key,
            image=small_image(dataset, queries[key].record),
            truths=tuple(seen.task.references(queries[key]))[:3],
            answers={control: own[key] for control, own in answers.items() if key in own},
            gain=gains[key],
        )
        for key in [*helped, *harmed]
    ]


def _values(found: Evaluation) -> dict[str, float]:
    items = found.items_json()
    name = found.task.headline.name
    return dict(zip(items["records"], items["items"][name], strict=True)) if name in items["items"] else {}


def _readable_answers(found: Evaluation) -> dict[str, str]:
    texts = answers_of(found.queries, found.predicted.predictions)
    return texts | {prediction.id: prediction.text for prediction in found.predicted.predictions if prediction.scores is None}


# Counterfactual texts ---------------------------------------------------------------------------------------------------------


def _preferences(opened: OpenedModel, dataset: Dataset, seen: Evaluation) -> list[Preference]:
    """Preferences for true texts over counterfactual ones; empty where no text has a word that can be exchanged."""
    spec = seen.spec
    pairs: dict[str, tuple[Query, Counterfactual]] = {}
    for query in seen.queries:
        for pair in counterfactuals(query.record, seen.task.references(query)):
            pairs[f"{query.id}#{pair.kind}"] = query, pair
    if not pairs:
        return []
    queries = [
        Query(key, query.record, query.messages, "likelihood", (pair.true, pair.false)) for key, (query, pair) in pairs.items()
    ]
    loader = opened.visual_loader([(dataset, spec.split)])
    bundle = opened.bundle
    answers = ModelAnswers(bundle, dataset, loader, DecodingConfig(), bundle.conversation_encoder(seen.prompt), opened.runtime.bf16)
    margins = [
        _margins(answers, asked, seen.folder / f"counterfactual-{name}", opened.weights, spec)
        for name, asked in (("image", queries), (TEXT, without_images(queries)))
    ]
    out = []
    for kind in ("all", *KINDS):
        chosen = [key for key, (_, pair) in pairs.items() if kind in ("all", pair.kind) and all(key in found for found in margins)]
        if chosen:
            images = ["+".join(pairs[key][0].record.image_keys) for key in chosen]
            with_image, without = ([found[key] for key in chosen] for found in margins)
            out.append(preference(kind, with_image, without, images, spec.resamples))
    return out


def _margins(answers: ModelAnswers, queries: Sequence[Query], folder: Path, weights: str, spec: EvalSpec) -> dict[str, float]:
    """Returns the log-probability of the true text minus that of the false one, by query."""
    settings = {
        "model": weights,
        "spec": spec.model_dump(mode="json"),
        "texts": [[query.id, *query.candidates] for query in queries],
    }
    found = predict(answers, queries, folder, settings, spec.batch_size, "true and false texts")
    return {p.id: p.scores[0] - p.scores[1] for p in found.predictions if p.scores is not None}
