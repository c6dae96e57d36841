"""The readers that the fuzzer drives, each with whole files to change. All are called in this process."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz import samples
from benchmarks.fuzz.samples import Files

SOURCE, OUT = "source", "out"  # folders of one input: what is read, and where the reader may write


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        files: makes whole inputs, of which one is drawn and changed.
        read: reads `HOME/source`, may write below `HOME/out`, and returns what it read in a comparable form.
        changed: beginnings of the names of files that are changed; all where empty.
        checked: beginnings of the names of files for which a checksum is stored elsewhere: a change in one of them must be an error
            or change nothing.
        is_text: reads text formats, for which more inputs are asked.
    """

    files: Callable[[], list[Files]]
    read: Callable[[Path], Any]
    changed: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    is_text: bool = True


# Data sources ---------------------------------------------------------------------------------------------------------------


def _prepare(home: Path, name: str, file: str = "", shards: int | None = None, **source: Any) -> str:
    from sightline.data.prepare.run import PrepareOptions, prepare
    from sightline.data.readers import SourceOptions

    where = {key: home / SOURCE / value if key == "images" else value for key, value in source.items()}
    options = PrepareOptions(home / OUT, SourceOptions(**where), workers=0, max_skipped=1.0, shards=shards)
    return prepare(home / SOURCE / file, name, options)["fingerprint"]


def _parse(home: Path, name: str, file: str = "", **source: Any) -> Any:
    """Reads a source to its end as `prepare` does, without its images."""
    from sightline.data.readers import FORMATS, Item, SourceOptions, Tally
    from sightline.errors import DataError

    path, tally, found = home / SOURCE / file, Tally(), 0
    if not path.exists():
        raise DataError("prepare looks whether it is there")
    for entry in FORMATS[name].read(path, SourceOptions(**source), tally):
        if isinstance(entry, Item):
            found += 1
            tally.use_images(entry.images)
    tally.close(path, None, home / OUT)
    return found


def parsed(
    files: Callable[[], list[Files]], name: str, is_text: bool = True, file: str = "", changed: tuple[str, ...] = (), **source: Any
) -> Reader:
    """Returns the reader of a source format."""
    return Reader(files, lambda home: _parse(home, name, file, **source), changed, is_text=is_text)


def prepared(name: str, file: str = "", **source: Any) -> Reader:
    """Returns `data prepare --format NAME` as a whole, which also decodes and writes; ten times slower than the reader alone."""
    reader = READERS[name]
    return Reader(reader.files, lambda home: _prepare(home, name, file, **source), reader.changed, is_text=False)


def _archive(home: Path, name: str) -> Any:
    """Reads every image of an archive."""
    from sightline.data.images.reader import check_image
    from sightline.data.readers.archives import open_root
    from sightline.errors import RecordError

    root, found = open_root(home / SOURCE / name), []
    for image in samples.NAMES:
        with contextlib.suppress(RecordError):
            found.append(check_image(root.fetch(image)))
    list(root.members())
    return found


# Dataset folders and stores -------------------------------------------------------------------------------------------------


@cache
def _dataset(shards: int | None) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, data in samples.table_files()[0].items():
            (home / SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
            (home / SOURCE / name).write_bytes(data)
        _prepare(home, "parquet", "rows.jsonl", shards=shards)
        return samples.folder_files(home / OUT)


def _read_dataset(home: Path) -> Any:
    from sightline.data.dataset import open_dataset
    from sightline.data.images.reader import read_image
    from sightline.errors import RecordError

    dataset = open_dataset(home / SOURCE)
    digest = hashlib.sha256()
    for split in dataset.splits:
        for record in dataset.records(split):
            digest.update(repr((split, record)).encode("utf-8", "surrogatepass"))
            for k in range(len(record.images)):
                try:
                    digest.update(read_image(dataset, record, k).tobytes())
                except RecordError as error:
                    digest.update(error.reason.encode())
    dataset.damaged_files()
    return digest.hexdigest()


def _read_store(home: Path) -> Any:
    from sightline.data.features.store import open_store

    store = open_store(home / SOURCE)
    digest = hashlib.sha256(repr((store.key, store.grid, len(store))).encode())
    for row in store._index:
        digest.update(store.features(row["sha256"].tobytes().hex()).tobytes())
    digest.update(store.mean().tobytes())
    return digest.hexdigest()


def _import_table(home: Path, file: str, names: str, values: str | None, scale: str | None) -> Any:
    from sightline.data.dataset import open_dataset
    from sightline.data.features.tables import TableKeys, import_table

    dataset = open_dataset(home / SOURCE / "data")
    keys = TableKeys(names, values, scale)
    summary = import_table([dataset], list(dataset.splits)[:1], home / SOURCE / file, keys, home / OUT, "fp32", 1.0)
    return summary["ok"]


def table_reader(file: str, make: Callable[[], list[bytes]], *, named: bool = True, beside: Files | None = None) -> Reader:
    """Returns the reader `data features --table FILE`."""

    def files() -> list[Files]:
        data = {f"data/{name}": content for name, content in samples.golden("data").items() if not name.startswith(("images", "."))}
        return [{file: content, **(beside or {}), **data} for content in make()]

    keys = ("names", "values", "scale") if named else (next(iter(beside or {})), None, None)
    return Reader(files, lambda home: _import_table(home, file, *keys), (file, *(beside or {})), is_text=False)


def _vectors(home: Path, name: str) -> Any:
    from sightline.assembly.evaluate.vectors import read_vectors

    return [array.tobytes() for array in read_vectors(str(home / SOURCE / name))]


# Configurations -------------------------------------------------------------------------------------------------------------


def _read_config(home: Path) -> Any:
    from sightline.assembly.config.resolving import resolve_config

    return resolve_config(None, home / SOURCE / "run.yaml", ["train.seed=3"]).model_dump_json()


def _read_sweep(home: Path) -> Any:
    from sightline.studies.spec import read_sweep

    return len(read_sweep(home / SOURCE / "sweep.yaml").runs)


def _config_files() -> list[Files]:
    from sightline.config import to_yaml
    from sightline.recipes import recipe_by_name

    return [
        {"run.yaml": samples.GOLDEN.joinpath("settings.yaml").read_bytes()},
        {"run.yaml": to_yaml(recipe_by_name("scenes_tiny")).encode()},
        {"run.yaml": to_yaml(recipe_by_name("flickr8k_dual")).encode()},
    ]


def _sweep_files() -> list[Files]:
    studies = samples.GOLDEN.parents[1] / "studies"
    return [{"sweep.yaml": (studies / f"{name}.yaml").read_bytes()} for name in ("quick_scenes", "dual_scenes")]


# Models and runs ------------------------------------------------------------------------------------------------------------

_MODEL = "checkpoints/step-370/model/"


def _model_files() -> list[Files]:
    return [{name.removeprefix(_MODEL): data for name, data in samples.golden("run", (_MODEL,)).items()}]


def _read_model(home: Path) -> Any:
    from sightline.assembly.model.build import read_model

    bundle = read_model(home / SOURCE)
    return sorted(bundle.inner.state_dict())


def _read_processor(home: Path) -> Any:
    from sightline.data.images.tilings.processors import read_processor

    return repr(read_processor(home / SOURCE))


def _processor_files() -> list[Files]:
    size = {"height": 32, "width": 32}
    kinds = (
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 24},
            "crop_size": size,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        {"image_processor_type": "Idefics3ImageProcessor", "max_image_size": {"longest_edge": 64}, "size": {"longest_edge": 128}},
        {
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": size,
            "image_grid_pinpoints": [[32, 64], [64, 64]],
        },
    )
    return [{"preprocessor_config.json": samples.dump(kind)} for kind in kinds] + [
        {"processor_config.json": samples.dump({"image_processor": kinds[0]})}
    ]


def _read_checkpoint(home: Path) -> Any:
    from sightline.assembly.config import locate
    from sightline.training import checkpoint

    choice = locate.find_checkpoint(home / SOURCE, "last")
    best = locate.find_checkpoint(home / SOURCE, "370")
    newest = checkpoint.newest(home / SOURCE)
    return repr((choice.saved.progress, choice.saved.note, choice.saved.random, best.saved.step, newest and newest.step))


def _run_files() -> list[Files]:
    """A run with its notes, and only the small ones of its weights."""
    import json

    files = samples.golden("run", ("config.yaml", "checkpoints/step-370/"))
    kept = {name: data for name, data in files.items() if not name.endswith("safetensors")}
    manifest = json.loads(kept["checkpoints/step-370/manifest.json"])
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.endswith("safetensors")}
    return [{**kept, "checkpoints/step-370/manifest.json": samples.dump(manifest)}]


def _read_metrics(home: Path) -> Any:
    from sightline.assembly.config.locate import check_metrics
    from sightline.assembly.evaluate import report
    from sightline.reporting.plots import Axis, LineSeries, line_chart
    from sightline.runtime.storage import read_json_lines

    lines = read_json_lines(home / SOURCE / "metrics.jsonl", check_metrics)
    steps = [line for line in lines if "loss" in line]
    losses = LineSeries("loss", [line["step"] for line in steps], [line["loss"] for line in steps])
    if steps:
        line_chart([losses], Axis("step"), Axis("loss", is_log=True), marks=report._borders(steps))
    return report._rates(steps), report._points(steps, "grad_norm")


def _metrics_files() -> list[Files]:
    lines = samples.golden("run", ("metrics",))["metrics.jsonl"].splitlines(keepends=True)
    return [{"metrics.jsonl": b"".join(lines[:12])}, {"metrics.jsonl": b"".join(lines[-12:])}]


def _read_predictions(home: Path) -> Any:
    from sightline.evaluation.predict import _stored

    return sorted(map(repr, _stored(home / SOURCE).values()))


def _evaluation_files() -> list[Files]:
    import json

    files = samples.golden("run/eval/caption/data-held-step-370")
    lines = [json.loads(line) for line in files["predictions.jsonl"].splitlines()]
    items = {
        "records": [f"{number}" for number in range(len(lines))],
        "image": [f"i{number}" for number in range(len(lines))],
        "items": {"cider": [0.5] * len(lines)},
    }
    return [{**files, "items.json": samples.dump(items)}]


def _read_evaluation(home: Path) -> Any:
    from sightline.assembly.evaluate.verdicts import find_verdict
    from sightline.evaluation.spec import EvalSpec
    from sightline.evaluation.tasks import task_by_name
    from sightline.studies.comparison import common_records, read_items, scored
    from sightline.studies.stored import is_stored

    spec = EvalSpec(task="caption", data=str(home / "nowhere"), split="held")
    intact = _evaluation_files()[0]
    import json

    settings, items = json.loads(intact["settings.json"]), json.loads(intact["items.json"])
    verdict = find_verdict(spec, items, settings, lambda spec: [home / SOURCE], task_by_name("caption", 20).headline, "command")
    found = read_items(home / SOURCE / "items.json")
    if found is not None:
        records, cluster = common_records([found])
        rows = scored({0: found}, "cider", records, cluster)
        if rows is not None and len(records):
            rows.interval(20)
    return str(verdict), is_stored(spec, home / SOURCE, "x")


# Scores ---------------------------------------------------------------------------------------------------------------------


def _score(home: Path, metric: str = "") -> Any:
    from sightline.metrics import files

    names = {file.name for file in (home / SOURCE).iterdir()}
    name = next((name for name in names if name.startswith("predictions")), None)
    if name is not None:
        return files.read_predictions(home / SOURCE / name)
    name = next((name for name in names if name.startswith("references")), "references.json")
    return files.read_references(home / SOURCE / name)


def _idf(home: Path) -> Any:
    from sightline.metrics import score_captions
    from sightline.metrics.files import read_references

    corpus = list(read_references(home / SOURCE / "idf.jsonl").values())
    found = score_captions(["a dog runs"], [("a dog runs fast", "two dogs")], ["cider"], frequencies=corpus, resamples=10)
    return [score.value for score in found.values()]


def _idf_files() -> list[Files]:
    return [{"idf.jsonl": files["references.jsonl"]} for files in samples.reference_files() if "references.jsonl" in files]


# Small things ---------------------------------------------------------------------------------------------------------------


def _image(home: Path) -> Any:
    from sightline.data.images.reader import check_image

    file = next((home / SOURCE).iterdir(), home / SOURCE / "0.png")
    return check_image(file)


def _typed(place: Path) -> str:
    """Returns what a user types, which no program reads from a file: only the text of this one counts."""
    is_text = place.is_file() and place.stat().st_size < 100_000
    return place.read_bytes().decode("utf-8", "surrogateescape") if is_text else ""


def _plugin_name(home: Path) -> Any:
    from sightline.errors import UsageError
    from sightline.runtime import plugins

    name = _typed(home / SOURCE / "plugin.name")
    with contextlib.suppress(LookupError):
        plugins.find(name)
    if name.split(".")[0].split(":")[0] not in ("math", "json", "no_such"):
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            plugins.load(name)
        raise UsageError("another module of Python")
    plugins.load(name)
    return name


def _plugin_names() -> list[Files]:
    return [{"plugin.name": name} for name in (b"json", b"math", b"json.decoder")]


def _overrides(home: Path) -> Any:
    from sightline.assembly.config.resolving import resolve_config
    from sightline.recipes import recipe_by_name

    return resolve_config(
        recipe_by_name("scenes_tiny"), None, _typed(home / SOURCE / "arguments.txt").splitlines()
    ).model_dump_json()


def _length_table(home: Path) -> Any:
    from sightline.data.samples.length_table import read_table

    table = read_table(home / SOURCE / "lengths.npz", home / SOURCE / "tokens.bin")
    return None if table is None else len(table)


def _length_files() -> list[Files]:
    cached = samples.golden("data/.cache")
    return [
        {"lengths.npz": data, "tokens.bin": cached[name.replace("lengths", "tokens").replace(".npz", ".bin")]}
        for name, data in cached.items()
        if name.startswith("lengths")
    ]


def _blind_logits(home: Path) -> Any:
    from sightline.assembly.train import blind_logits

    found = blind_logits._read(home / SOURCE / "align.npz", "key", 3)
    return None if found is None else len(found)


def _journal(home: Path) -> Any:
    from contextlib import closing

    from sightline.runtime.storage import JsonLines

    with closing(JsonLines(home / SOURCE / "journal.jsonl", checksum=True)) as lines:
        lines.write({"a": 1})
    return None


READERS: dict[str, Reader] = {
    "csv": parsed(samples.csv_files, "csv", changed=("inputs",)),
    "tsv": parsed(samples.tsv_files, "csv", changed=("inputs",)),
    "json": Reader(
        samples.table_files,
        lambda home: _parse(
            home,
            "parquet",
            next(iter(sorted(file.name for file in (home / SOURCE).iterdir() if file.name.startswith("rows"))), "rows.json"),
        ),
        ("rows",),
    ),
    **{
        name: parsed(
            lambda name=name: samples.preset_files(name),
            name,
            changed=("qa", "val_v1", "nlvr", "rows", "problems", "receipts", "TextCaps"),
        )
        for name in ("chartqa", "docvqa", "nlvr", "refcocog", "scienceqa", "sroie", "textcaps")
    },
    "coco": parsed(samples.coco_files, "coco", changed=("captions", "instances")),
    "karpathy": parsed(samples.karpathy_files, "coco", changed=("dataset",)),
    "llava": parsed(samples.llava_files, "llava", changed=("chat",)),
    "flickr8k": parsed(samples.flickr_files, "flickr8k", changed=("Flickr",)),
    "flickr8k_kaggle": parsed(samples.kaggle_files, "flickr8k", changed=("captions",)),
    "imagefolder": parsed(samples.imagefolder_files, "imagefolder", changed=("train/metadata", "0", "1", "2", "3", "dog")),
    "records": Reader(
        lambda: [_dataset(None), _dataset(1 << 20)],
        lambda home: _prepare(home, "records"),
        ("records", "dataset", "index", "images.npy"),
        is_text=False,
    ),
    "text": parsed(samples.text_files, "text"),
    "urls": parsed(samples.url_files, "urls", text_only=True),
    "webdataset": parsed(samples.webdataset_files, "webdataset", is_text=False),
    "parquet": parsed(samples.parquet_files, "parquet", is_text=False),
    "hf": parsed(samples.hub_files, "hf", is_text=False, changed=("train",)),
    "hf_saved": parsed(samples.saved_files, "hf", is_text=False),
    "zip_images": Reader(samples.zip_images, lambda home: _archive(home, "images.zip"), ("images",), is_text=False),
    "tar_images": Reader(samples.tar_images, lambda home: _archive(home, "images.tar"), ("images",), is_text=False),
    "dataset": Reader(lambda: [_dataset(None)], _read_dataset, ("dataset", "index", "records"), ("index",)),
    "dataset_shards": Reader(
        lambda: [_dataset(1 << 20)], _read_dataset, ("dataset", "index", "images.npy", "shards"), ("index", "images.npy")
    ),
    "feature_store": Reader(lambda: [samples.golden("features")], _read_store, checked=("index",)),
    "table_npz": table_reader("table.npz", lambda: [samples.npz(packed, **samples.table_arrays()) for packed in (False, True)]),
    "table_npy": table_reader(
        "table.npy",
        lambda: [samples.npy(samples.table_arrays()["values"])],
        named=False,
        beside={"names.txt": b"\n".join(samples.table_arrays()["names"].tolist())},
    ),
    "table_names": table_reader(
        "table.npy",
        lambda: [samples.npy(samples.table_arrays()["values"])],
        named=False,
        beside={"names.npy": samples.npy(samples.table_arrays()["names"])},
    ),
    "table_hdf5": table_reader("table.h5", lambda: [samples.hdf5(chunked, **samples.table_arrays()) for chunked in (False, True)]),
    "vectors_npz": Reader(
        lambda: [{"v.npz": samples.npz(packed, **samples.vector_arrays())} for packed in (False, True)],
        lambda home: _vectors(home, "v.npz"),
        is_text=False,
    ),
    "vectors_npy": Reader(
        lambda: [{f"{name}.npy": samples.npy(array) for name, array in samples.vector_arrays().items()}],
        lambda home: _vectors(home, ""),
        is_text=False,
    ),
    "vectors_safetensors": Reader(
        lambda: [{"v.safetensors": samples.safetensors(samples.vector_arrays())}],
        lambda home: _vectors(home, "v.safetensors"),
        is_text=False,
    ),
    "vectors_hdf5": Reader(
        lambda: [{"v.h5": samples.hdf5(chunked, **samples.vector_arrays())} for chunked in (False, True)],
        lambda home: _vectors(home, "v.h5"),
        is_text=False,
    ),
    "config": Reader(_config_files, _read_config),
    "arguments": Reader(
        lambda: [{"arguments.txt": b"train.lr=1e-3\nmodel.connector.kind=mlp\nstages.full.train.steps=10\ndata.path=x"}],
        _overrides,
    ),
    "sweep": Reader(_sweep_files, _read_sweep),
    "model_folder": Reader(_model_files, _read_model, is_text=False),
    "image_processor": Reader(_processor_files, _read_processor),
    "checkpoint": Reader(
        _run_files, _read_checkpoint, ("checkpoints",), ("checkpoints/step-370/state", "checkpoints/step-370/model")
    ),
    "metrics": Reader(_metrics_files, _read_metrics),
    "predictions": Reader(lambda: [samples.golden("run/eval/caption/data-held-step-370", ("predictions",))], _read_predictions),
    "evaluation": Reader(_evaluation_files, _read_evaluation, ("items", "scores", "settings")),
    "journal": Reader(
        lambda: [{"journal.jsonl": samples.golden("run/eval/caption/data-held-step-370")["predictions.jsonl"]}], _journal
    ),
    "score_predictions": Reader(samples.prediction_files, _score),
    "score_references": Reader(samples.reference_files, _score),
    "idf": Reader(_idf_files, _idf),
    "length_table": Reader(_length_files, _length_table, is_text=False),
    "blind_logits": Reader(
        lambda: [{"align.npz": samples.golden("run", ("contrast",))["contrast/align.npz"]}], _blind_logits, is_text=False
    ),
    "plugin_names": Reader(_plugin_names, _plugin_name),
    **{
        f"image_{kind}": Reader(make, _image, is_text=False)
        for kind, make in (
            ("jpeg", samples.jpeg_files),
            ("png", samples.png_files),
            ("gif", samples.gif_files),
            ("webp", samples.webp_files),
            ("bmp", samples.bmp_files),
            ("tiff", samples.tiff_files),
        )
    },
}


READERS |= {
    f"prepare_{name}": prepared(name)
    for name in ("csv", "coco", "llava", "flickr8k", "imagefolder", "sroie", "refcocog", "webdataset", "parquet")
}


def clean(home: Path) -> None:
    """Removes what a reader wrote."""
    for path in home.iterdir():
        if path.name != SOURCE:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
