"""A folder exported with its code answers as Sightline does, in a process that cannot import Sightline."""

import ast
import json
from pathlib import Path

import pytest
import torch

from sightline.assembly.evaluate import export as exporting
from sightline.assembly.evaluate.export import export_remote_code
from sightline.assembly.model.build import ModelBundle, write_model
from sightline.cli import main
from sightline.data.images.tilings import AnyResConfig, CoverConfig, SplitConfig, TilingConfig, WholeConfig
from sightline.errors import NumericsError, StorageError, UsageError
from sightline.export.remote_code import rewritten
from sightline.generation.decode import DecodingConfig, generate
from sightline.models.connectors import CONNECTORS
from sightline.runtime import plugins
from tests.assembly.model.helpers import noise, prompt, question
from tests.export.helpers import built, run_without_sightline
from tests.models.connectors.helpers import SMALL
from tests.pages import write_python

TILINGS: dict[str, TilingConfig] = {"linear": SplitConfig(), "mlp": AnyResConfig(), "swiglu": CoverConfig()}
TEXT = "What is this?"
ANSWER = """
import json
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

found = {}
content = [{"type": "image", "image": "photo.png"}, {"type": "text", "text": "What is this?"}]
chat = [{"role": "user", "content": content}]
for folder in sorted(Path("models").iterdir()):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    assert isinstance(model.config, type(AutoConfig.from_pretrained(folder, trust_remote_code=True)))
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    text = processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    found[folder.name] = [text, type(model).__module__.partition(".")[0]]
    if folder.name == "mlp":
        hidden = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()(**inputs).last_hidden_state
        assert (model.get_output_embeddings()(hidden) == model(**inputs).logits).all()
        ask = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True)
        options = {"max_new_tokens": 6, "do_sample": False}
        out = ask(text=chat, generate_kwargs=options, return_full_text=False)[0]["generated_text"].strip()
        assert out == text, (out, text)
    if folder.name == "moe":  # what is saved again keeps its code
        model.save_pretrained("again")
        processor.save_pretrained("again")
        again = AutoModelForImageTextToText.from_pretrained("again", trust_remote_code=True).eval()
        difference = (again(**inputs).logits - model(**inputs).logits).abs().max().item()
        assert difference < 1e-5, difference
assert not any(name.partition(".")[0] in ("sightline", "jaxtyping") for name in sys.modules)
print(json.dumps(found))
"""


def test_every_connector_and_tiling_answers_where_sightline_is_not_installed(tmp_path: Path) -> None:
    assert SMALL.keys() == set(CONNECTORS)
    noise(0).save(tmp_path / "photo.png")
    expected = {}
    for name, connector in SMALL.items():
        bundle = built(connector, TILINGS.get(name, WholeConfig()))
        (tmp_path / "own" / name).mkdir(parents=True)
        write_model(bundle, tmp_path / "own" / name)
        done = export_remote_code(str(tmp_path / "own" / name), tmp_path / "models" / name)
        assert done.difference == 0.0
        asked = prompt(bundle, question(0, text=TEXT))
        (said,) = generate(bundle.model, bundle.tokenizer, [asked], DecodingConfig(max_new_tokens=6))
        expected[name] = [said.text, "transformers_modules"]
    assert json.loads(run_without_sightline(ANSWER, tmp_path)) == expected
    assert len({text for text, _ in expected.values()}) > 3


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(built(SMALL["mlp"], WholeConfig()), folder)
    return folder


def test_the_command_exports_what_sightline_opens_too(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(own), "--format", "remote-code", "--out", str(tmp_path / "out"), "--json"])
    assert stopped.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(tmp_path / "out")
    assert printed["difference"] == 0.0
    assert printed["logits"] > 1000
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["SightlineForConditionalGeneration"]
    for place in config["auto_map"].values():
        file, _, name = place.partition(".")
        tree = ast.parse((tmp_path / "out" / f"{file}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert export_remote_code(str(tmp_path / "out"), tmp_path / "twice").difference == 0.0
    with pytest.raises(StorageError, match="exists already"):
        export_remote_code(str(own), tmp_path / "out")


def test_other_logits_and_other_inputs_are_refused(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(bundle: ModelBundle, folder: Path) -> None:
        with torch.no_grad():
            bundle.inner.connector.project.linears[1].bias.add_(0.01)
        write_model(bundle, folder)
        with torch.no_grad():
            bundle.inner.connector.project.linears[1].bias.sub_(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_model", changed)
        with pytest.raises(NumericsError, match="logits of the exported folder differ"):
            export_remote_code(str(own), tmp_path / "out")

    def resized(bundle: ModelBundle, folder: Path) -> None:
        write_model(bundle, folder)
        file = folder / "processor_config.json"
        values = json.loads(file.read_text())
        values["processing"]["preparation"]["mean"] = [0.1, 0.2, 0.3]
        file.write_text(json.dumps(values))

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_model", resized)
        with pytest.raises(NumericsError, match="gives other inputs"):
            export_remote_code(str(own), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_plug_in_is_refused(tmp_path: Path) -> None:
    file = write_python("connectors.md", tmp_path / "pooled.py")
    plugins.load(str(file))
    try:
        connector = CONNECTORS.read({"kind": "pooled:PooledConfig"})
        (tmp_path / "own").mkdir()
        write_model(built(connector, WholeConfig()), tmp_path / "own")
        with pytest.raises(UsageError, match="'pooled:PooledConfig' is code of a plug-in"):
            export_remote_code(str(tmp_path / "own"), tmp_path / "out")
    finally:
        plugins.forget()


def test_imports_are_rewritten_and_nothing_else() -> None:
    code = '''"""Doc."""

from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from sightline.errors import (
    ConfigError,
    DataError as Bad,
)
from sightline.runtime import plugins

if TYPE_CHECKING:
    from rich.progress import Progress


def f(x: Float[Tensor, "N"]) -> None:
    from sightline.models import loading as read
    raise ConfigError("from sightline.errors import ConfigError")
'''
    new, needed = rewritten(code)
    assert sorted(set(needed)) == ["sightline.errors", "sightline.models.loading", "sightline.runtime.plugins"]
    assert (
        new
        == '''"""Doc."""

from typing import TYPE_CHECKING

from typing import Annotated as Float
from typing import Annotated as Int

from .sightline_errors import ConfigError as ConfigError
from .sightline_errors import DataError as Bad
from .sightline_runtime_plugins import __name__ as _
from . import sightline_runtime_plugins as plugins

if TYPE_CHECKING:
    pass


def f(x: Float[Tensor, "N"]) -> None:
    from .sightline_models_loading import __name__ as _
    from . import sightline_models_loading as read
    raise ConfigError("from sightline.errors import ConfigError")
'''
    )
