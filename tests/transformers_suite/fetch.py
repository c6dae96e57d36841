"""Fetches transformers' own tests for the installed version and makes them importable as `transformers_tests`.

    python -m tests.transformers_suite.fetch FOLDER [CHECKOUT]

The source distribution lacks some of the modules that its own tests import. They are named, and empty classes stand in for theirs;
with a checkout of transformers' repository at the same version nothing is lacking.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

# Module -> the class that the tests take from it.
OUTSIDE = {
    "exporters/test_export.py": "ExportTesterMixin",
    "generation/test_utils.py": "GenerationTesterMixin",
    "pipelines/test_pipelines_image_text_to_text.py": "ImageTextToTextPipelineTests",
}
# What `test_processing_common` takes from the folder `utils` beside the tests: where an address has been downloaded to. No test of
# ours downloads.
ADDRESSES = "utils/fetch_hub_objects_for_ci.py"


def download(folder: Path) -> Path:
    """The `tests` folder of the source distribution."""
    name = f"transformers-{importlib.metadata.version('transformers')}"
    archive = folder / f"{name}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "transformers"]
        subprocess.run([*pip, "-d", folder, name.replace("-", "==")], check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / name / "tests"


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    checkout = Path(sys.argv[2]) if sys.argv[2:] and sys.argv[2] else None
    target = folder / "transformers_tests"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(checkout / "tests" if checkout else download(folder), target)
    (target / "__init__.py").touch()
    addresses = folder / ADDRESSES
    addresses.parent.mkdir(exist_ok=True)
    if checkout:
        shutil.copy2(checkout / ADDRESSES, addresses)
    else:
        addresses.write_text("def url_to_local_path(url, *arguments):\n    return url\n", "utf-8")
    for path, name in OUTSIDE.items():
        file = target / path
        if file.exists():
            continue
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(f'class {name}:\n    """Lacking in the source distribution."""\n', "utf-8")
        sys.stdout.write(
            f"the source distribution lacks tests/{path} ({name}): its tests are not run; TRANSFORMERS_SRC=checkout brings them\n"
        )


if __name__ == "__main__":
    main()
