"""`import sightline` loads neither torch nor transformers, and makes its classes known to transformers in either order."""

import subprocess
import sys

import pytest

from sightline.assembly.model.build import Processing, build_from_config, write_model
from tests.assembly.helpers import run_config


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_alone_loads_nothing_heavy_and_takes_less_than_a_third_of_a_second() -> None:
    script = """
import sys, time
begin = time.process_time()
import sightline
print(time.process_time() - begin, *sorted({"torch", "transformers", "numpy", "PIL", "pydantic"} & set(sys.modules)))
"""
    seconds, *heavy = run(script).split()
    assert float(seconds) < 0.3
    assert heavy == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    bundle = build_from_config(run_config(), Processing(max_tokens=120), None)
    path = tmp_path_factory.mktemp("model")
    write_model(bundle, path)
    return str(path)


@pytest.mark.parametrize(
    "imports",
    [
        "import sightline, transformers",
        "import transformers, sightline",
        "from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline; import sightline",
        "import sightline; from transformers import pipeline",
    ],
)
def test_either_order_of_imports_opens_the_folder(imports: str, folder: str) -> None:
    script = f"""
{imports}
import sys, transformers
assert "sightline.models" not in sys.modules
print(type(transformers.AutoProcessor.from_pretrained({folder!r})).__name__)
print(type(transformers.AutoConfig.from_pretrained({folder!r})).__name__)
print(type(transformers.AutoModel.from_pretrained({folder!r})).__name__)
print(type(transformers.AutoModelForImageTextToText.from_pretrained({folder!r})).__name__)
"""
    assert run(script).split() == ["SightlineProcessor", "SightlineConfig", "SightlineModel", "SightlineForConditionalGeneration"]


def test_other_models_are_looked_up_without_loading_ours() -> None:
    script = """
import sightline, sys, transformers
assert type(transformers.AutoConfig.for_model("llama")).__name__ == "LlamaConfig"
assert "sightline.models" not in sys.modules
assert type(transformers.AutoConfig.for_model("sightline")).__name__ == "SightlineConfig"
"""
    run(script)
