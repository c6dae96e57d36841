"""The authors' checkpoint and HDF5 layout, on files made in that form, against their rule written out as a formula."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from sightline.assembly.evaluate.authors import read_network, read_release
from sightline.assembly.evaluate.vectors import evaluate_vectors
from sightline.data.dataset import open_dataset
from sightline.errors import DataError, StorageError, UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.evaluation.tasks import task_by_name
from sightline.metrics.retrieval import recall_at
from sightline.models.light_network import AlignmentConfig, LightNetwork
from tests.data.pictures import picture, prepared, put

WIDTH, PHRASES, IMAGES = 16, 3, 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for number in range(IMAGES):
        put(tmp_path / f"in/{number}.png", picture(number))
        captions = [f"caption {number} {k}" for k in range(2)]
        rows.append({"id": str(100 + number), "images": [f"{number}.png"], "captions": captions, "split": "val"})
    put(tmp_path / "in/records.jsonl", rows)
    prepared("records", tmp_path / "in", tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Files in the authors' layout; image 103 lacks its boxes, and the phrases of relations have the further axis."""
    folder, generator = tmp_path / "release", np.random.default_rng(5)
    folder.mkdir()
    torch.manual_seed(2)
    network = LightNetwork(AlignmentConfig(variant="published"), WIDTH)
    state = {
        name.replace("project.", "bottleneck_box.0.").replace("encoder.", "transformer_encoder_box."): value
        for name, value in network.state_dict().items()
    }
    state |= {"bottleneck_encoder.0.weight": torch.zeros(256, WIDTH), "bottleneck_encoder.0.bias": torch.zeros(256)}
    torch.save(state | {"encoder_pos_embedding.positional_encodings": torch.zeros(1, 21, WIDTH)}, folder / "ComAlign-CLIP.pt")
    np.save(folder / "image.npy", 5 * generator.normal(size=(IMAGES, WIDTH)).astype(np.float32))
    np.save(folder / "text.npy", 5 * generator.normal(size=(2 * IMAGES, WIDTH)).astype(np.float32))
    shapes = {
        "val2017_noun_yolo_emb": (10, WIDTH),
        "val2017_rel_yolo_emb": (10, WIDTH),
        "val2017_att_sentence": (5, 1, PHRASES, WIDTH),  # five captions, of which the data set has two
        "val2017_relation_sentence": (5, 1, PHRASES, 3, WIDTH),
    }
    for name, shape in shapes.items():
        with h5py.File(folder / f"{name}_ViT-B-32_openai.h5", "w") as file:
            for number in range(IMAGES):
                if number != 3 or "sentence" in name:
                    entry = generator.normal(size=shape).astype(np.float32)
                    if "sentence" in name:
                        entry[:, :, number % 2 + 1 :] = 0  # padding
                    file[str(100 + number)] = entry
    return folder


def unit(values: Any) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-8)


def scores_by_hand(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Text-to-image `[T, I]` and image-to-text `[I, T]` scores, with loops."""
    network = read_network(next(folder.glob("*.pt")))
    image, text = (np.load(folder / f"{name}.npy").astype(np.float64) for name in ("image", "text"))
    entries: dict[str, list[np.ndarray]] = {}
    for kind in ("noun", "rel_", "att_sentence", "relation_sentence"):
        with h5py.File(next(folder.glob(f"*{kind}*.h5"))) as file:
            entries[kind] = [file[str(100 + n)][()] if str(100 + n) in file else np.zeros((10, WIDTH)) for n in range(IMAGES)]
    refined, phrases = [], []
    for n in range(IMAGES):
        tokens = torch.tensor(np.concatenate([entries["noun"][n], entries["rel_"][n], image[n][None]]))[None].float()
        with torch.no_grad():
            refined.append(unit(network(tokens, torch.ones(1, 21, dtype=torch.bool))[0].double().numpy()))
        for k in range(2):
            phrases.append((unit(entries["att_sentence"][n][k, 0]), unit(entries["relation_sentence"][n][k, 0, :, 0])))
    plain = unit(image) @ unit(text).T
    whole = np.stack([row[-1] for row in refined]) @ unit(text).T
    to_text, to_image = np.zeros_like(plain), np.zeros_like(plain)
    for i, row in enumerate(refined):
        for t, (entity, relation) in enumerate(phrases):
            for boxes, parts in ((row[:10], entity), (row[10:20], relation)):
                cosines = boxes @ parts.T
                to_text[i, t] += cosines.max(axis=1).mean()
                to_image[i, t] += cosines.max(axis=0).mean()
    to_text /= abs(to_text.max(axis=1).mean())
    to_image = to_image.T / abs(to_image.T.max(axis=1).mean())
    plain, whole = (matrix / abs(matrix.max(axis=1).mean()) for matrix in (plain, whole))
    return 10 * plain.T + to_image + whole.T, 0.06 * whole + 0.06 * to_text + 2 * plain + 0.02 * to_image.T


def test_files_in_the_authors_layout_score_by_their_rule(data: Path, release: Path, tmp_path: Path) -> None:
    spec = EvalSpec(data=str(data), task="retrieval", split="val", resamples=5)
    done = evaluate_vectors(spec, str(release), tmp_path / "out")
    to_image, to_text = scores_by_hand(release)
    owner = np.repeat(np.arange(IMAGES), 2)
    right = owner[None] == np.arange(IMAGES)[:, None]
    for k in (1, 5):
        assert done.scores[f"t2i_r{k}"].value == pytest.approx(recall_at(to_image, right.T, k).mean())
        assert done.scores[f"i2t_r{k}"].value == pytest.approx(recall_at(to_text, right, k).mean())
    above = [int((row > row[owner[t]]).sum()) for t, row in enumerate(to_image)]
    found = {prediction.id: prediction.scores or () for prediction in done.predicted.predictions}
    assert [int(found[str(100 + n)][at]) for n in range(IMAGES) for at in (5, 8)] == above
    assert json.loads((tmp_path / "out/scores.json").read_text())["settings"]["scoring"] == "published"
    mean = evaluate_vectors(spec.model_copy(update={"scoring": "mean"}), str(release), tmp_path / "mean")
    assert mean.predicted.predictions != done.predicted.predictions


def test_a_checkpoint_is_loaded_without_running_code(release: Path) -> None:
    file = next(release.glob("*.pt"))
    torch.save({"bottleneck_box.0.weight": print}, file)  # a pickled function
    with pytest.raises(StorageError, match="no file of plain tensors"):
        read_network(file)
    torch.save({"other.weight": torch.zeros(2)}, file)
    with pytest.raises(DataError, match=r"other\.weight"):
        read_network(file)


def test_what_is_missing_is_named(release: Path, data: Path, tmp_path: Path) -> None:
    task = task_by_name("retrieval", 5)
    queries = [query for record in open_dataset(data).records("val") for query in task.queries(record, "")]
    image, text = (np.load(release / f"{name}.npy") for name in ("image", "text"))
    noun = next(release.glob("*noun*.h5"))
    with h5py.File(noun, "a") as file:
        del file["100"]
        file["100"] = np.zeros((3, WIDTH))
    with pytest.raises(DataError, match=r"\(3, 16\), \(10, 16\) expected"):
        read_release(release, queries, image, text)
    noun.unlink()
    with pytest.raises(DataError, match=r"0 files \*noun"):
        read_release(release, queries, image, text)
    next(release.glob("*.pt")).unlink()
    with pytest.raises(UsageError, match="--scoring would change nothing"):
        evaluate_vectors(EvalSpec(data=str(data), task="retrieval", split="val", scoring="published"), str(release), tmp_path / "o")
