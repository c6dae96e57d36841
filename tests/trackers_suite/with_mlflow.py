"""What MLflow has stored of a short training, in its file store."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.trackers_suite.helpers import followed, numbers


def test_mlflow_has_losses_rates_norms_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # since 3.7 its default is a database
    monkeypatch.chdir(tmp_path)
    found = followed(tmp_path, "mlflow")
    client = MlflowClient(store)
    (experiment,) = [each for each in client.search_experiments() if each.name == "scenes"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.connector.kind"] == "mlp"
    assert run.data.params["train.steps"] == "6"
    for name, values in numbers(found).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert {value.step: value.value for value in history} == pytest.approx(values, rel=1e-12), name
    for step, texts in found.texts.items():
        folder = Path(client.download_artifacts(run.info.run_id, f"generated/step-{step:08}", str(tmp_path)))
        kept = json.loads((folder / "texts.json").read_text("utf-8"))["generated"]
        assert {sample["id"]: sample["text"] for sample in kept} == texts
        assert {sample["id"]: sample["truth"] for sample in kept} == {record: found.truths[record] for record in texts}
        for record in texts:
            with Image.open(folder / f"{record}.png") as image:
                assert image.size == (64, 64)
