"""Tables of features from elsewhere: each image gets the row of its name, with the numbers that the table means."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sightline.data.dataset import open_dataset
from sightline.data.features import tables as external_tables
from sightline.data.features.store import FeatureStore
from sightline.data.features.tables import TableKeys, import_table
from sightline.data.readers import SourceOptions
from sightline.errors import DataError, SkipLimitError, UsageError
from tests.data.pictures import picture, prepared, put

KEYS = TableKeys("names", "feat")
NAMES = ["c.jpg", "a.jpg", "spare.jpg", "b.jpg"]


def dataset(folder: Path, names: tuple[str, ...] = ("a.jpg", "b.jpg", "c.jpg")) -> Path:
    """Records that name images which are not there."""
    put(folder / "in/captions.jsonl", [{"id": f"{n}", "image": name, "captions": ["x"]} for n, name in enumerate(names)])
    prepared("flickr8k", folder / "in", folder / "set", source=SourceOptions(without_images=True))
    return folder / "set"


def save(path: Path, kind: str, **columns: Any) -> Path:
    """The same table as .npz, compressed .npz or .h5."""
    if kind == "h5":
        with h5py.File(path.with_suffix(".h5"), "w") as file:
            for key, value in columns.items():
                array = np.asarray(value)
                file[key] = array.astype("S") if array.dtype.kind == "U" else array
        return path.with_suffix(".h5")
    (np.savez_compressed if kind == "npz_compressed" else np.savez)(path.with_suffix(".npz"), **columns)
    return path.with_suffix(".npz")


def imported(
    folder: Path, table: Path, keys: TableKeys = KEYS, names: tuple[str, ...] = ("a.jpg", "b.jpg", "c.jpg"), **options: Any
):
    """The features of each of a data set's images, by name."""
    made = open_dataset(dataset(folder, names))
    settings = {"dtype": "fp32", "max_skipped": 0.0, **options}
    import_table([made], (), table, keys, folder / "store", **settings)
    store = FeatureStore(folder / "store")
    return {record.images[0]: store.features(record.image_info[0].sha256) for record in made.records()}, store


@pytest.mark.parametrize("kind", ["npz", "npz_compressed", "h5"])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_rows_go_to_the_images_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, chunk: int) -> None:
    monkeypatch.setattr(external_tables, "CHUNK_BYTES", chunk)
    values = np.arange(20, dtype=np.float64).reshape(4, 5)
    found, store = imported(tmp_path, save(tmp_path / "t", kind, names=NAMES, feat=values))
    for name, row in (("a.jpg", 1), ("b.jpg", 3), ("c.jpg", 0)):
        np.testing.assert_array_equal(found[name], values[row].reshape(1, 1, 5).astype(np.float32))
    assert (store.kind, store.row_format.patches, store.row_format.width, store.grid) == ("external", 1, 5, (1, 1))
    assert store.summary["told"] == {"table": f"t.{kind.partition('_')[0]}"}


@pytest.mark.parametrize("kind", ["external", "virtual", "link", "link to a group", "soft link to a link"])
def test_an_hdf5_file_reads_no_other_file(tmp_path: Path, kind: str) -> None:
    secret = np.arange(20, dtype=np.float32).reshape(4, 5)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["feat"] = secret
    (tmp_path / "secret.bin").write_bytes(secret.tobytes())
    key = "group/feat" if kind == "link to a group" else "feat"
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["names"] = np.array(NAMES, dtype="S")
        if kind == "external":
            file.create_dataset("feat", (4, 5), "f4", external=[(str(tmp_path / "secret.bin"), 0, secret.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 5), "f4")
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "feat", (4, 5))
            file.create_virtual_dataset("feat", layout)
        else:
            name = "group" if kind == "link to a group" else "feat" if kind == "link" else "real"
            file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/" if kind == "link to a group" else "feat")
            if kind == "soft link to a link":
                file["feat"] = h5py.SoftLink("/real")
        np.testing.assert_array_equal(file[key][()], secret)  # h5py follows it
    with pytest.raises((DataError, UsageError), match=r"other file|another file|no such array"):
        imported(tmp_path, tmp_path / "t.h5", TableKeys("names", key))
    assert not (tmp_path / "store").exists()


def test_rows_of_several_tokens_keep_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    found, store = imported(tmp_path, save(tmp_path / "t", "npz", names=NAMES, feat=values))
    np.testing.assert_array_equal(found["b.jpg"], values[3][None])
    assert store.grid == (1, 6)


def test_scale_and_power_are_applied_as_documented(tmp_path: Path) -> None:
    """As tables of square roots in bytes are kept: value = (byte * scale) ** 2; signs survive."""
    raw = np.random.default_rng(0).integers(-100, 100, (4, 5)).astype(np.int8)
    for number, scale in enumerate([np.float32(0.01), np.linspace(0.01, 0.04, 4, dtype=np.float32)]):
        table = save(tmp_path / f"t{number}", "npz", names=NAMES, feat=raw, scale=scale)
        found, _ = imported(tmp_path / str(number), table, TableKeys("names", "feat", "scale", 2.0))
        exact = raw.astype(np.float64) * np.asarray(scale, dtype=np.float64).reshape(-1, 1)
        exact = np.sign(exact) * exact**2
        for name, row in (("a.jpg", 1), ("b.jpg", 3), ("c.jpg", 0)):
            np.testing.assert_allclose(found[name][0, 0], exact[row], rtol=1e-6)


def test_a_plain_array_takes_its_names_from_a_file(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float16).reshape(4, 2)
    np.save(tmp_path / "t.npy", values)
    np.save(tmp_path / "names.npy", np.array(NAMES))
    put(tmp_path / "names.txt", "\n".join(NAMES))
    put(tmp_path / "rows.jsonl", [{"row": row, "image": name} for row, name in enumerate(NAMES)])
    for number, names in enumerate(["names.npy", "names.txt", "rows.jsonl:image", str(tmp_path / "rows.jsonl") + ":image"]):
        found, _ = imported(tmp_path / str(number), tmp_path / "t.npy", TableKeys(names))
        np.testing.assert_array_equal(found["b.jpg"].ravel(), values[3])
    with pytest.raises(UsageError, match=r"rows.jsonl:image"):
        imported(tmp_path / "x", tmp_path / "t.npy", TableKeys("rows.jsonl"))
    with pytest.raises(UsageError, match="--names must be given"):
        imported(tmp_path / "y", tmp_path / "t.npy", TableKeys())


# Names ----------------------------------------------------------------------------------------------------------------------


def test_folders_and_suffixes_may_differ_where_that_leaves_no_doubt(tmp_path: Path) -> None:
    pictures = ("images/a.jpg", "deep/er/b.png", "c.jpg", "val/d.jpg", "train/d.jpg")
    names = ["a", "x/b.jpg", "c.jpg", "train/d.jpg", "val/d.jpg"]
    values = np.arange(5, dtype=np.float32).reshape(5, 1)
    found, _ = imported(tmp_path, save(tmp_path / "t", "npz", names=names, feat=values), names=pictures)
    assert [float(found[name].item()) for name in pictures] == [0, 1, 2, 4, 3]


def test_a_name_that_fits_two_rows_fits_none(tmp_path: Path) -> None:
    table = save(tmp_path / "t", "npz", names=["one/a.jpg", "two/a.jpg"], feat=np.zeros((2, 3)))
    with pytest.raises(SkipLimitError, match=r"1 of 1 images have no row .*'a.jpg'.*first name is 'one/a.jpg'"):
        imported(tmp_path, table, names=("a.jpg",))


def test_images_that_are_there_are_found_by_hash_or_by_the_id_of_their_record(tmp_path: Path) -> None:
    rows = [{"id": f"id-{n}.jpg", "images": [f"{n}.png"], "captions": ["x"]} for n in range(3)]
    for n in range(3):
        put(tmp_path / f"in/{n}.png", picture(n))
    put(tmp_path / "in/records.jsonl", rows)
    prepared("records", tmp_path / "in", tmp_path / "set")
    made = open_dataset(tmp_path / "set")
    hashes = [record.image_info[0].sha256 for record in made.records()]
    for number, names in enumerate([hashes, ["id-0", "id-1.png", "f/id-2.jpg"]]):
        table = save(tmp_path / f"t{number}", "npz", names=names, feat=np.arange(3.0).reshape(3, 1))
        import_table([made], (), table, KEYS, tmp_path / f"s{number}", "fp32", 0.0)
        store = FeatureStore(tmp_path / f"s{number}")
        assert [float(store.features(name).item()) for name in hashes] == [0, 1, 2]


def test_images_without_a_row_are_allowed_up_to_a_share(tmp_path: Path) -> None:
    table = save(tmp_path / "t", "npz", names=["a.jpg", "c.jpg"], feat=np.zeros((2, 3)))
    with pytest.raises(SkipLimitError, match=r"1 of 3 images have no row in the table, for example 'b.jpg'"):
        imported(tmp_path / "x", table)
    made = open_dataset(dataset(tmp_path / "y"))
    import_table([made], (), table, KEYS, tmp_path / "s", "fp32", 0.5)
    store = FeatureStore(tmp_path / "s")
    assert [info.sha256 in store for record in made.records() for info in record.image_info] == [True, False, True]


def test_a_name_twice_in_the_table_is_an_error(tmp_path: Path) -> None:
    table = save(tmp_path / "t", "npz", names=["a.jpg", "b.jpg", "a.jpg"], feat=np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"rows 0 and 2 have the same name 'a.jpg'"):
        imported(tmp_path, table)


# Bad tables -----------------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Path], Path], TableKeys, str]] = {
    "no such file": (lambda here: here / "t.npz", KEYS, "does not exist"),
    "another kind": (lambda here: put(here / "t.csv", "x"), KEYS, r"a table is one of .h5, .hdf5, .npy, .npz"),
    "not a zip": (lambda here: put(here / "t.npz", "nonsense"), KEYS, "cannot be read"),
    "not hdf5": (lambda here: put(here / "t.h5", "nonsense"), KEYS, "cannot be read"),
    "empty": (lambda here: put(here / "t.npy", b""), TableKeys("names.txt"), "cannot be read"),
    "no key given": (
        lambda here: save(here / "t", "npz", names=NAMES, feat=np.zeros((4, 2))),
        TableKeys("names"),
        "has names, feat",
    ),
    "wrong key": (
        lambda here: save(here / "t", "h5", names=NAMES, feat=np.zeros((4, 2))),
        TableKeys("names", "features"),
        r"no such array. It has feat, names",
    ),
    "a key of a plain array": (
        lambda here: save_npy(here, np.zeros((4, 2))),
        TableKeys("names.txt", "feat"),
        "is one array and has no keys",
    ),
    "vectors of texts": (lambda here: save(here / "t", "npz", names=NAMES, feat=[["a"]] * 4), KEYS, "found"),
    "numbers as names": (
        lambda here: save(here / "t", "npz", names=[1, 2, 3, 4], feat=np.zeros((4, 2))),
        KEYS,
        "texts are expected",
    ),
    "one dimension": (lambda here: save(here / "t", "npz", names=NAMES, feat=np.zeros(4)), KEYS, r"\[rows, E\] or \[rows, P, E\]"),
    "fewer names": (
        lambda here: save(here / "t", "npz", names=NAMES[:3], feat=np.zeros((4, 2))),
        KEYS,
        "4 rows of features and 3 names",
    ),
    "a scale of another length": (
        lambda here: save(here / "t", "npz", names=NAMES, feat=np.zeros((4, 2)), scale=np.ones(3)),
        TableKeys("names", "feat", "scale"),
        "a scale is one number",
    ),
    "python objects": (
        lambda here: save(here / "t", "npz", names=NAMES, feat=np.array([[object()] * 2] * 4)),
        KEYS,
        "cannot be read",
    ),
    "torn in the middle": (lambda here: torn(here), KEYS, "cannot be read"),
}


def save_npy(here: Path, values: np.ndarray) -> Path:
    np.save(here / "t.npy", values)
    put(here / "names.txt", "\n".join(NAMES))
    return here / "t.npy"


def torn(here: Path) -> Path:
    """The zip is whole and its member is not."""
    import zipfile

    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 200)))
    with zipfile.ZipFile(here / "t.npz", "w") as file:
        names = io.BytesIO()
        np.save(names, np.array(NAMES))
        file.writestr("names.npy", names.getvalue())
        file.writestr("feat.npy", buffer.getvalue()[:-3000])
    return here / "t.npz"


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_cannot_be_used_says_why_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    make, keys, message = BAD[case]
    with pytest.raises((UsageError, DataError), match=message):
        imported(tmp_path, make(tmp_path), keys)
    assert not (tmp_path / "store").exists()


def test_another_file_is_another_key(tmp_path: Path) -> None:
    found = []
    for number, value in enumerate((0.0, 1.0)):
        table = save(tmp_path / f"t{number}", "npz", names=NAMES, feat=np.full((4, 2), value))
        found.append(imported(tmp_path / str(number), table)[1].key)
    assert found[0] != found[1]
