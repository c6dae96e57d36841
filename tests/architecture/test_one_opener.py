"""One opener of images, one reader of those of records, one writer of files, and no format that runs code when it is read."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sightline"
OPENER = Path("data/images/opener.py")
READER = Path("data/images/reader.py")
# Unchanged, into another dataset, a table or a page.
TAKES_BYTES = {
    Path("data/readers/records.py"),
    Path("data/prepare/csv_export.py"),
    Path("data/prepare/folder_export.py"),
    Path("assembly/evaluate/report.py"),
}
WRITER = Path("runtime/storage.py")
PICKLED = Path("models/pickled.py")  # the one module that opens pickles, as plain tensors
CODE_RUNNING = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name with attributes; what comes before the first dot may be left out."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def opens_to_write(call: ast.Call) -> bool:
    """Mode `x` passes: it makes a new file, within a folder that the writer publishes, and can damage none."""
    name = dotted(call.func)
    if name != "open" and not name.endswith(".open"):
        return False
    modes = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [str(node.value) for node in modes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return any(len(text) <= 4 and set(text) <= set("rwaxbt+") and set(text) & set("wa+") for text in texts)


def loads_tensors_only(call: ast.Call) -> bool:
    """Whether a call of `torch.load` states that nothing but tensors and plain containers is restored."""
    stated = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
    return dotted(call.func) == "torch.load" and any(isinstance(value, ast.Constant) and value.value is True for value in stated)


def faults(code: str, path: Path) -> list[str]:
    """What a module does that only another may do."""
    found = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call() if dotted(node.func) in ("Image.open", "PIL.Image.open") and path != OPENER:
                found.append(f"{path}:{node.lineno}: opens an image; use open_image")
            case ast.ImportFrom(module="PIL.Image") if any(alias.name == "open" for alias in node.names) and path != OPENER:
                found.append(f"{path}:{node.lineno}: imports PIL.Image.open; use open_image")
            case ast.Call(func=ast.Attribute(attr="image_bytes")) if path != READER and path not in TAKES_BYTES:
                found.append(f"{path}:{node.lineno}: takes the file of an image; use read_image")
            case ast.Assign() | ast.AugAssign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(dotted(target).endswith("LOAD_TRUNCATED_IMAGES") for target in targets):
                    found.append(f"{path}:{node.lineno}: lets torn images pass")
            case ast.Call() if path == PICKLED and loads_tensors_only(node):
                pass
            case ast.Call() if dotted(node.func) in ("torch.load", "torch.save"):
                found.append(f"{path}:{node.lineno}: {dotted(node.func)}; use safetensors")
            case ast.Call() if opens_to_write(node) and path != WRITER:
                found.append(f"{path}:{node.lineno}: opens a file to write; use runtime/storage.py")
            case ast.Import(names=names):
                found += [f"{path}:{node.lineno}: {a.name} runs code" for a in names if a.name.partition(".")[0] in CODE_RUNNING]
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in CODE_RUNNING:
                found.append(f"{path}:{node.lineno}: {module} runs code")
    return found


def test_the_package_keeps_its_single_doors() -> None:
    modules = sorted(SOURCE.rglob("*.py"))
    assert {OPENER, READER, WRITER, *TAKES_BYTES} <= {module.relative_to(SOURCE) for module in modules}
    assert [fault for module in modules for fault in faults(module.read_text("utf-8"), module.relative_to(SOURCE))] == []


@pytest.mark.parametrize(
    "code",
    [
        "from PIL import Image\nImage.open(x)",
        "import PIL.Image\nPIL.Image.open(x)",
        "from PIL.Image import open",
        "data = dataset.image_bytes(record, 0)",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
        "import torch\ntorch.load(x)",
        "torch.save(x, y)",
        "import pickle",
        "from pickle import loads",
        "import numpy, dill.source",
        "open(x, 'w')",
        "open(x, mode='ab')",
        "path.open('wb')",
        "(folder / 'x').open('r+')",
    ],
)
def test_each_door_is_watched(code: str) -> None:
    assert len(faults(code, Path("training/loop.py"))) == 1


@pytest.mark.parametrize(
    "code", ["open(x)", "path.open('rb')", "path.open('xb')", "open(x, 'r', encoding='utf-8')", "image.load()"]
)
def test_reading_is_free(code: str) -> None:
    assert faults(code, Path("training/loop.py")) == []


def test_pickles_are_opened_in_one_module_as_plain_tensors_alone() -> None:
    assert faults("torch.load(x, weights_only=True)", PICKLED) == []
    assert len(faults("torch.load(x, weights_only=True)", Path("training/loop.py"))) == 1
    assert len(faults("torch.load(x)", PICKLED)) == len(faults("torch.load(x, weights_only=False)", PICKLED)) == 1
