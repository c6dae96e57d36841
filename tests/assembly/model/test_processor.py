"""The processor of a model folder: what transformers feeds the model is what Sightline feeds it."""

import base64
import copy
import io
import os
import pickle
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, pipeline

from sightline.assembly.model import build as models
from sightline.assembly.model.build import ModelBundle, Processing
from sightline.assembly.model.processor import SightlineProcessor
from sightline.data.images.tilings import AnyResConfig, CoverConfig, SplitConfig, TilingConfig, WholeConfig
from sightline.errors import ConfigError, StorageError, UsageError
from sightline.generation.decode import DecodingConfig, generate
from sightline.models.connectors.mlp import MLPConfig
from sightline.types import Message, Part, Record
from tests.assembly.helpers import run_config
from tests.assembly.model.helpers import noise, prompt, question
from tests.pages import write_python

TILINGS = {"whole": WholeConfig(), "anyres": AnyResConfig(), "split": SplitConfig(), "cover": CoverConfig()}
RECORDS = [question(0), question(1, 2, text="And now?"), question(3), question(text="Who are you?")]


def built(tiling: TilingConfig, template: str = "auto") -> ModelBundle:
    config = run_config()
    section = config.model.model_copy(update={"tiling": tiling, "connector": MLPConfig(shuffle=2)})
    bundle = models.build_from_config(
        config.model_copy(update={"model": section}), Processing(max_tokens=250, template=template), None
    )
    torch.nn.init.normal_(bundle.inner.get_input_embeddings().weight, std=0.05)  # all added tokens begin at the same mean
    bundle.module.eval()
    return bundle


@pytest.fixture(scope="module", params=TILINGS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Path]:
    bundle = built(TILINGS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    models.write_model(bundle, folder)
    return bundle, folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Path]:
    bundle = built(WholeConfig())
    folder = tmp_path_factory.mktemp("model")
    models.write_model(bundle, folder)
    return bundle, folder


def chat(record: Record) -> list[dict[str, Any]]:
    pictures = iter(record.images)
    content = [
        {"type": "image", "image": noise(int(next(pictures)))} if part.is_image else {"type": "text", "text": part.text}
        for part in record.messages[0].content
    ]
    return [{"role": "user", "content": content}]


def fed(processor: Any, records: list[Record], **options: Any) -> Any:
    conversations = [chat(record) for record in records]
    return processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=options
    )


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id or "text")
def test_ids_pixels_and_sources_are_those_of_our_own_rows(written: tuple[ModelBundle, Path], record: Record) -> None:
    bundle, folder = written
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, SightlineProcessor)
    ours, theirs = prompt(bundle, record), fed(processor, [record])
    assert theirs["input_ids"].tolist() == [ours.row.ids.tolist()]
    assert theirs["attention_mask"].tolist() == [[1] * len(ours.row.ids)]
    if not record.images:
        assert set(theirs) == {"input_ids", "attention_mask"}
        return
    assert torch.equal(theirs["pixel_values"], bundle.model.normalise(torch.from_numpy(np.array(ours.pixels))))
    sources = theirs.get("visual_sources", torch.arange(len(theirs["pixel_values"]) * bundle.tokens_per_crop))
    assert sources.tolist() == ours.visual_index.tolist()


def test_a_padded_batch_answers_as_sightline_does(written: tuple[ModelBundle, Path]) -> None:
    bundle, folder = written
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = fed(processor, RECORDS, padding=True)
    ours = generate(
        bundle.model, bundle.tokenizer, [prompt(bundle, record) for record in RECORDS], DecodingConfig(max_new_tokens=6)
    )
    said = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    texts = processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == [one.text for one in ours]
    assert len({one.text for one in ours}) > 1


def test_images_may_be_given_in_any_form(whole: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(whole[1])
    picture = noise(3)
    picture.save(tmp_path / "image.png")
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    array = np.array(picture)
    expected = processor.image_processor(picture)["pixel_values"]
    forms = [
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        packed.getvalue(),
        base64.b64encode(packed.getvalue()).decode(),
        {"bytes": packed.getvalue(), "path": None},
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array),
        (array / 255).astype(np.float32),
        picture.convert("RGBA"),
        Image.open(tmp_path / "image.png"),
    ]
    for form in forms:
        assert np.array_equal(processor.image_processor(form)["pixel_values"], expected), type(form)
    two = processor(images=[[picture], [array, array]], text=["<image>a", "<image><image>"], padding=True, return_tensors="np")
    assert two["pixel_values"].shape[0] == 3
    turned = picture.copy()
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif(), quality=95)
    by_file, opened = (
        processor.image_processor(x)["pixel_values"] for x in (tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg"))
    )
    assert np.array_equal(by_file, opened)


def test_tokens_of_images_are_marked(whole: tuple[ModelBundle, Path]) -> None:
    bundle, folder = whole
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.image_token == "<image>"
    assert processor.image_token_ids == [bundle.inner.config.image_token_id]
    out = fed(processor, RECORDS, padding=True, return_mm_token_type_ids=True)
    assert out["mm_token_type_ids"].sum(1).tolist() == [len(prompt(bundle, record).row.slots) for record in RECORDS]
    assert torch.equal(out["mm_token_type_ids"].bool(), out["input_ids"] == processor.image_token_id)
    with torch.no_grad():
        bundle.inner(**out)  # a collator may pass all of it


def test_what_cannot_be_used_is_refused(whole: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(whole[1])
    with pytest.raises(UsageError, match="2 images are given, but the text has 1 times"):
        processor(images=[noise(0), noise(1)], text="<image>")
    with pytest.raises(UsageError, match=r"image 2: .*image_missing"):
        processor(images=[noise(0), str(tmp_path / "gone.png")], text="<image><image>")
    with pytest.raises(UsageError, match="lose visual tokens"):
        processor(images=noise(0), text="<image>", truncation=True, max_length=3)
    with pytest.raises(UsageError, match="neither text nor images"):
        processor()
    with pytest.raises(TypeError, match="colour"):
        processor(text="a", colour="red")


@pytest.mark.parametrize("template", ["auto", "plain", "vicuna"])
def test_contents_may_be_texts(template: str) -> None:
    bundle = built(WholeConfig(), template)
    processor = SightlineProcessor.of(bundle)
    messages = (Message("system", (Part("Be brief."),)), Message("user", (Part("Who?"),)))
    expected = bundle.conversation_encoder().encode_prompt(messages, []).ids.tolist()
    plain = [{"role": message.role, "content": message.text} for message in messages]
    parts = [{"role": message.role, "content": [{"type": "text", "text": message.text}]} for message in messages]
    for form in (plain, parts):
        found = processor.apply_chat_template(form, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert found["input_ids"] == [expected]


def test_a_processor_is_saved_pickled_and_read_again(whole: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(whole[1])
    expected = fed(processor, RECORDS[:2], padding=True)
    for _ in range(2):
        processor.save_pretrained(tmp_path)
        processor = pickle.loads(pickle.dumps(AutoProcessor.from_pretrained(tmp_path)))
        found = fed(processor, RECORDS[:2], padding=True)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    whole[0].inner.save_pretrained(tmp_path)
    again = models.read_model(tmp_path)
    assert again.processing == whole[0].processing
    assert np.array_equal(prompt(again, RECORDS[0]).row.ids, prompt(whole[0], RECORDS[0]).row.ids)


def test_a_folder_of_an_earlier_version_has_the_same_processor(written: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    expected = fed(AutoProcessor.from_pretrained(written[1]), RECORDS, padding=True)
    old = shutil.copytree(written[1], tmp_path / "old", ignore=shutil.ignore_patterns("processor_config.json"))
    found = fed(AutoProcessor.from_pretrained(old), RECORDS, padding=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Models -------------------------------------------------------------------------------------------------------------------------


def model_with_another_forward(bundle: ModelBundle) -> Any:
    """The model as TRL leaves it, which sets `forward` of an instance."""
    replaced: Any = copy.copy(bundle.inner)
    replaced.__dict__.pop("_without_head", None)
    replaced.forward = None
    return replaced


def test_the_model_without_head_gives_the_hidden_states_of_the_same_weights(written: tuple[ModelBundle, Path]) -> None:
    bundle, folder = written
    inputs = fed(AutoProcessor.from_pretrained(folder), RECORDS[:2], padding=True)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert model.state_dict().keys() == bundle.inner.state_dict().keys()
    with torch.no_grad():
        hidden = model.eval()(**inputs).last_hidden_state
        assert torch.equal(bundle.inner.base_model(**inputs).last_hidden_state, hidden)
        assert torch.equal(bundle.model.language.get_output_embeddings()(hidden), bundle.inner(**inputs).logits)
        replaced: Any = model_with_another_forward(bundle)
        assert torch.equal(replaced.base_model(**inputs).last_hidden_state, hidden)
    assert bundle.inner.base_model.vision is bundle.inner.vision
    assert bundle.inner.base_model is bundle.inner.base_model


def test_pixels_together_with_embeddings(written: tuple[ModelBundle, Path]) -> None:
    bundle, folder = written
    inputs = dict(fed(AutoProcessor.from_pretrained(folder), RECORDS[:3], padding=True))
    ids = inputs.pop("input_ids")
    embeds = bundle.inner.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = bundle.inner(input_ids=ids, **inputs).logits
        assert torch.equal(bundle.inner(inputs_embeds=embeds, **inputs).logits, expected)
        marked = torch.where((ids == bundle.inner.config.image_token_id)[..., None], 0.0, embeds)
        assert torch.equal(bundle.inner(input_ids=ids, inputs_embeds=marked, **inputs).logits, expected)
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            bundle.inner(input_ids=ids, inputs_embeds=embeds)


def test_the_folder_names_its_architecture_and_its_files_have_the_users_permissions(
    tmp_path: Path, whole: tuple[ModelBundle, Path]
) -> None:
    old = os.umask(0o027)
    try:
        models.write_model(whole[0], tmp_path)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o640}
    assert AutoModel.from_pretrained(tmp_path).config.architectures == ["SightlineForConditionalGeneration"]


def test_the_pipeline_answers_as_sightline_does(whole: tuple[ModelBundle, Path]) -> None:
    bundle, folder = whole
    ask = pipeline("image-text-to-text", model=str(folder))
    found = ask(text=chat(RECORDS[0]), generate_kwargs={"max_new_tokens": 6, "do_sample": False}, return_full_text=False)
    (ours,) = generate(bundle.model, bundle.tokenizer, [prompt(bundle, RECORDS[0])], DecodingConfig(max_new_tokens=6))
    assert found[0]["generated_text"].strip() == ours.text


def test_the_example_of_the_page_says_what_sightline_says(whole: tuple[ModelBundle, Path], tmp_path: Path) -> None:
    bundle, folder = whole
    (tmp_path / "model").symlink_to(folder)
    noise(0).save(tmp_path / "photo.png")
    script = write_python("compatibility.md", tmp_path / "example.py")
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    asked = prompt(bundle, question(0, text="What is this?"))
    (ours,) = generate(bundle.model, bundle.tokenizer, [asked], DecodingConfig(max_new_tokens=8))
    assert done.stdout.strip() == ours.text


@pytest.mark.parametrize("collates", [False, True], ids=["default collator", "collator of its own"])
def test_the_trainer_of_transformers_trains_the_folder(whole: tuple[ModelBundle, Path], tmp_path: Path, collates: bool) -> None:
    processor = AutoProcessor.from_pretrained(whole[1])
    model = AutoModelForImageTextToText.from_pretrained(whole[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def collate(records: list[Record]) -> dict[str, torch.Tensor]:
        batch = dict(fed(processor, records, padding=True))
        return batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, -100)}

    items: list[Any] = [question(number) for number in range(4)]
    if not collates:
        items = [{key: value[0] if key != "pixel_values" else value for key, value in collate([item]).items()} for item in items]
    options = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        save_steps=2,
    )
    trainer = Trainer(model, options, train_dataset=items, processing_class=processor, data_collator=collate if collates else None)
    result = trainer.train()
    assert np.isfinite(result.training_loss)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"connector", "language"} <= changed
    opened = models.read_model(tmp_path / "checkpoint-2")
    assert torch.equal(
        opened.inner.state_dict()["connector.project.linears.0.weight"], model.state_dict()["connector.project.linears.0.weight"]
    )


def test_a_model_folder_without_its_chat_template_says_so(tmp_path: Path) -> None:
    """The template `auto` is that of the tokenizer; without it another one would be used, with other answers."""
    bundle = models.build_from_config(run_config(), Processing(max_tokens=120), None)
    models.write_model(bundle, tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(StorageError, match=r"has no chat_template.jinja, the chat template that the model was trained with"):
        models.read_model(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "5", "{"])
def test_a_damaged_tokenizer_is_one_clear_error(tmp_path: Path, name: str, content: str) -> None:
    bundle = models.build_from_config(run_config(), Processing(max_tokens=120), None)
    models.write_model(bundle, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match="no tokenizer at"):
        models.read_model(tmp_path)
