"""Log-probabilities of candidates are those of a plain forward pass over each whole conversation."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.model.build import Processing, build_from_config, read_model, write_model
from sightline.assembly.model.bundle import ModelBundle
from sightline.data.dataset import Dataset, open_dataset
from sightline.data.images.pixels import PixelLoader
from sightline.data.samples.prompts import make_prompt
from sightline.errors import UsageError
from sightline.evaluation import tasks
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import Query, ScoreInfo, Task
from sightline.generation.decode import embeddings
from sightline.registry import Registry
from sightline.types import Message, Part, Prediction, Record, Score
from tests.assembly.evaluate.helpers import data
from tests.assembly.helpers import run_config
from tests.data.check.planted import stored

CANDIDATES = ("a dog", "two children play on the beach", "a")


class Choice(Task):
    """Asks which of three captions fits; a hit is the first."""

    name = "choice_of_three"
    scores = (ScoreInfo("accuracy", "accuracy", is_share=True),)
    prompt = "Which one?"

    def asks(self, record: Record) -> bool:
        return bool(record.images)

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        asked = Message("user", (*(Part() for _ in record.images), Part(prompt)))
        return (Query(record.id, record, (asked,), "likelihood", CANDIDATES),)

    def references(self, query: Query) -> tuple[str, ...]:
        return query.candidates[:1]

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        hits = tuple(float(np.argmax(prediction.scores or ()) == 0) for prediction in predictions)
        return {"accuracy": Score("accuracy", sum(hits) / len(hits), 0.0, 1.0, hits)}


class Embedding(Choice):
    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        return (Query(record.id, record, (), "embed"),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    path.mkdir()
    write_model(build_from_config(run_config(), Processing(prompt="Look.", max_tokens=24), None), path)
    return path


def plain_log_probability(bundle: ModelBundle, dataset: Dataset, record: Record, candidate: str) -> float:
    """One conversation, all logits, the softmax of torch: the tokens behind the prompt, up to and with the first end token."""
    conversation_encoder = bundle.conversation_encoder(Choice.prompt, max_tokens=4096)
    assert bundle.processing.preparation is not None
    pictures = PixelLoader(bundle.processing.preparation, bundle.processing.tiling)
    prompt = make_prompt(dataset, record, conversation_encoder, pictures, bundle.tokens_per_crop)
    said = bundle.tokenizer(f"{candidate}{bundle.tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt.row.ids.tolist(), *said]])
    length = len(prompt.row.ids)
    with torch.no_grad():
        before = embeddings(bundle.model, ids[:, :length], [prompt], length)
        after = bundle.inner.get_input_embeddings()(ids[:, length:])
        logits = bundle.model.language(inputs_embeds=torch.cat([before, after], 1)).logits[0]
    log_probabilities = logits.log_softmax(-1)
    return sum(float(log_probabilities[length - 1 + place, token]) for place, token in enumerate(said))


def test_candidates_are_scored_as_a_plain_forward_pass_scores_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASKS", Registry(Task, "tests.tasks", {Choice.name: Choice}))
    path = data(tmp_path / "set")
    stored(path, 2).write_bytes(b"broken")
    done = evaluate(EvalSpec(task=Choice.name, data=str(path), batch_size=4), str(model), out=tmp_path / "out", device="cpu")
    assert done.predicted.skipped == {"image_format": 1}
    bundle, dataset = read_model(model), open_dataset(path)
    bundle.module.eval()
    records = {record.id: record for record in dataset.records("val")}
    found = {prediction.id: prediction.scores for prediction in done.predicted.predictions}
    assert len(found) == 10
    for key in ("r0", "r7"):
        plain = [plain_log_probability(bundle, dataset, records[key], candidate) for candidate in CANDIDATES]
        assert found[key] == pytest.approx(plain, rel=1e-4)
    again = evaluate(EvalSpec(task=Choice.name, data=str(path), batch_size=1), str(model), out=tmp_path / "one", device="cpu")
    for prediction in again.predicted.predictions:
        assert prediction.scores == pytest.approx(found[prediction.id], rel=1e-4)
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert (told["prompt"], told["headline"], told["settings"]["prompt"]) == ("Which one?", "accuracy", "Which one?")
    items = json.loads((tmp_path / "out/items.json").read_text())
    assert items["records"] == list(found)
    assert np.mean(items["items"]["accuracy"]) == told["scores"]["accuracy"]["value"]


def test_a_task_that_asks_for_embeddings_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", Registry(Task, "tests.tasks", {"embedding": Embedding}))
    with pytest.raises(UsageError, match="asks for embeddings, which only a dual encoder computes"):
        evaluate(EvalSpec(task="embedding", data=str(data(tmp_path / "set"))), str(model), out=tmp_path / "out")
