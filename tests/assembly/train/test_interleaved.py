"""Texts with any number of images between them, in several turns, with every tiling: from the dataset folder to hidden states."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.assembly.config.schema import DataConfig, RunConfig
from sightline.assembly.model.build import build_from_config
from sightline.assembly.model.bundle import ModelBundle
from sightline.assembly.train.corpus import build_corpus, visual_input_loader
from sightline.config import Tree, validate_tree
from sightline.data.batches.collate import collate
from sightline.data.batches.corpus import Corpus
from sightline.data.samples.encoding import ConversationEncoder
from sightline.data.samples.processing import Processing
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.objectives.next_token import NextToken
from sightline.types import IMAGE, Batch, Record, Sample, Visual
from tests.builders import Exact, apart, decoder_folder, encoder_folder
from tests.data.pictures import picture, prepared, put

TILINGS: dict[str, dict[str, Any]] = {
    "anyres": {"kind": "anyres", "grids": [[1, 2], [2, 1], [1, 1]]},
    "cover": {"kind": "cover", "max_tiles": 3, "with_global": True},
    "split": {"kind": "split", "longest_edge": 64},
    "whole": {"kind": "whole"},
}
SIZES = {"a": (40, 30), "b": (20, 70), "c": (64, 64), "d": (90, 25), "e": (9, 8)}


def say(*parts: str | None) -> list[dict[str, str]]:
    """Content parts; None is an image."""
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]


def turns(*contents: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]


RECORDS: list[dict[str, Any]] = [
    {
        "id": "between",
        "images": ["a", "b", "c"],
        "messages": turns(say("First ", None, " then ", None, None, " What is new?"), say("A brown dog.")),
    },
    {
        "id": "two-turns",
        "images": ["d", "a", "e"],
        "messages": turns(
            say(None, "What colour is it?"), say("It is blue."), say("And ", None, None, "?"), say("Two children on the beach.")
        ),
    },
    {"id": "text", "messages": turns(say("Who waits?"), say("The woman in a white coat."))},
    {"id": "one", "images": ["e"], "messages": turns(say(None), say("A red ball."))},
    {"id": "q1", "images": ["b", "d"], "messages": turns(say(None, None, "What runs?"), say("A dog."))},
    {"id": "q2", "images": ["b", "d"], "messages": turns(say(None, None, "Where?"), say("Across the green field."))},
    {
        "id": "q3",
        "images": ["b", "d"],
        "messages": turns(say(None, None, "Who?"), say("Two children."), say("How many?"), say("3 people.")),
    },
    {"id": "captions", "images": ["c", "e"], "captions": ["Two children play.", "A red ball on the beach.", "A dog."]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interleaved")
    for number, (name, size) in enumerate(SIZES.items()):
        put(root / f"in/{name}.png", picture(number, size=size))
    rows = [{**record, "images": [f"{name}.png" for name in record.get("images", [])]} for record in RECORDS]
    put(root / "in/records.jsonl", rows)
    prepared("records", root / "in", root / "set")
    return root / "set"


@pytest.fixture(scope="module", params=TILINGS)
def bundle(request: pytest.FixtureRequest) -> ModelBundle:
    run = {
        "model": {
            "vision": {"path": str(encoder_folder("siglip"))},
            "language": {"path": str(decoder_folder("llama"))},
            "connector": {"kind": "mlp", "shuffle": 2},
            "tiling": TILINGS[request.param],
        },
        "data": {"max_tokens": 256},
        "train": {"steps": 1, "batch_size": 1},
        "stages": [{"name": "align", "parts": {"connector": "train"}}],
    }
    bundle = build_from_config(validate_tree(RunConfig, Tree(run)), Processing(max_tokens=256, prompt="Say it."), None)
    bundle.model.eval()
    with torch.no_grad():  # new rows begin as the mean of all rows: told apart here, so that an exchange would be seen
        for end in (bundle.inner.get_input_embeddings(), bundle.inner.get_output_embeddings()):
            end.weight.add_(torch.randn_like(end.weight) * 0.1)  # pyrefly: ignore
    bundle.model.double()
    return bundle


def corpus_of(bundle: ModelBundle, folder: Path, share: bool = True) -> Corpus:
    data = DataConfig(path=str(folder), max_tokens=256, row_tokens=1024, prompt="Say it.", share_prefix=share, max_skipped=0.0)
    return build_corpus(bundle, data, visual_input_loader(bundle, data))


def samples_of(corpus: Corpus) -> list[Sample]:
    return [corpus.sample(unit) for unit in range(len(corpus.tokens))]


def batch_of(bundle: ModelBundle, rows: Sequence[Sequence[Sample]]) -> Batch:
    return collate(rows, bundle.pad_id).to_batch()


def outcome(bundle: ModelBundle, batch: Batch) -> dict[tuple[str, int, tuple[int, ...]], list[float]]:
    """Losses of each supervised answer, by record, turn and tokens: the order of batches does not matter."""
    with torch.no_grad(), Exact():
        hidden = bundle.model.hidden(batch)
        logits = hidden.states_SD @ hidden.head.weight_VD.T
        nll = torch.nn.functional.cross_entropy(logits, batch.supervision.target_S, reduction="none")
        loss = NextToken()(bundle.model, batch)
    assert torch.allclose(loss.total, nll.sum(), rtol=1e-9)
    found, plan = {}, batch.supervision
    for span in plan.span_S.unique():
        inside = plan.span_S == span
        sample, branch, turn = (int(values[inside][0]) for values in (plan.sample_S, plan.branch_S, plan.turn_S))
        found[batch.record_ids[sample][branch], turn, tuple(plan.target_S[inside].tolist())] = nll[inside].tolist()
    return found


def answers(found: dict[tuple[str, int, tuple[int, ...]], list[float]], record: str, turn: int) -> list[float]:
    """The losses of one answer."""
    return next(values for key, values in found.items() if key[:2] == (record, turn))


def test_packed_rows_of_many_images_equal_separate_rows_in_float64(bundle: ModelBundle, folder: Path) -> None:
    """Shared prefixes, several turns, text alone and images of all sizes in two rows, against every branch in its own row."""
    shared, separate = samples_of(corpus_of(bundle, folder)), samples_of(corpus_of(bundle, folder, share=False))
    assert len(shared) < len(separate) == 10
    packed = outcome(bundle, batch_of(bundle, [shared[::2], shared[1::2], []]))
    for others in ([[sample] for sample in separate], [[part] for sample in shared for part in apart(sample)]):
        alone = outcome(bundle, batch_of(bundle, others))
        assert packed.keys() == alone.keys()
        assert len(packed) == 12
        for key, values in packed.items():
            np.testing.assert_allclose(values, alone[key], rtol=1e-10, err_msg=str(key))


def test_lengths_and_crops_are_known_before_any_image_is_opened(bundle: ModelBundle, folder: Path) -> None:
    corpus = corpus_of(bundle, folder)
    for unit, sample in enumerate(samples_of(corpus)):
        assert corpus.tokens[unit] == sample.num_tokens
        assert corpus.sources[0].table.crops[unit] == sample.num_crops
        assert corpus.supervised[unit] == sum(span.end - span.start for part in sample.branches for span in part.spans)


def test_questions_about_the_same_images_share_them_and_no_others(bundle: ModelBundle, folder: Path) -> None:
    shared = {tuple(part.record_id for part in sample.branches): sample for sample in samples_of(corpus_of(bundle, folder))}
    assert ("q1", "q2", "q3") in shared
    assert ("captions",) * 3 in shared
    assert {("between",), ("two-turns",), ("text",), ("one",)} <= set(shared)
    for names in [("q1", "q2", "q3"), ("captions",) * 3]:
        sample = shared[names]
        assert sample.prefix > sample.image_slots.max()
        assert len(sample.image_slots) == len(sample.visual_index)


def test_every_slot_holds_the_token_of_its_own_image(bundle: ModelBundle, folder: Path) -> None:
    """Images encoded one by one fill the slots as the whole batch does, whatever stands before them in the row."""
    model = bundle.model
    assert isinstance(model, SightlineForConditionalGeneration)
    corpus = corpus_of(bundle, folder)
    samples = samples_of(corpus)
    batch = batch_of(bundle, [samples[::-1]])
    assert batch.visual is not None
    with torch.no_grad():
        table = model.visual_tokens(model.features(batch.visual))
        filled = table[batch.visual.visual_index_M]
        expected = []
        for unit in reversed(range(len(samples))):
            source, record = corpus.first_member(unit)
            if record.images:
                expected.extend(alone(bundle, source.conversation_encoder, corpus, record))
    torch.testing.assert_close(filled, torch.cat(expected), rtol=1e-9, atol=1e-9)


def alone(bundle: ModelBundle, conversation_encoder: ConversationEncoder, corpus: Corpus, record: Record) -> list[torch.Tensor]:
    """What fills the slots of each image of a record, encoded by itself."""
    model, out = bundle.model, []
    assert isinstance(model, SightlineForConditionalGeneration)
    for number, layout in enumerate(conversation_encoder.layouts(record)):
        one = replace(record, images=record.images[number : number + 1], image_info=record.image_info[number : number + 1])
        assert corpus.visual_inputs is not None
        pixels = corpus.visual_inputs.load(corpus.sources[0].dataset, one).pixels
        assert pixels is not None
        visual = Visual(torch.from_numpy(pixels), None, torch.zeros(0).long(), torch.zeros(0).long(), 1)
        out.append(model.visual_tokens(model.features(visual))[torch.tensor(layout.visual_index)])
    return out


def test_a_image_changes_nothing_before_its_place_and_everything_after(bundle: ModelBundle, folder: Path) -> None:
    """The second image of `two-turns` stands behind the first answer: that answer cannot know it."""
    sample = next(s for s in samples_of(corpus_of(bundle, folder)) if s.branches[0].record_id == "two-turns")
    assert sample.images is not None
    layouts = bundle.conversation_encoder().layouts(
        next(r for r in corpus_of(bundle, folder).sources[0].dataset.records() if r.id == "two-turns")
    )
    first = layouts[0].num_crops
    changed = sample.images.copy()
    changed[first:] = 255 - changed[first:]
    before = outcome(bundle, batch_of(bundle, [[sample]]))
    after = outcome(bundle, batch_of(bundle, [[replace(sample, images=changed)]]))
    # The encoder's convolution rounds by where its buffers lie in memory (1e-15 of a loss); the answer after moves by 1e-6 or more.
    np.testing.assert_allclose(answers(after, "two-turns", 1), answers(before, "two-turns", 1), rtol=1e-12)
    changes = zip(answers(before, "two-turns", 3), answers(after, "two-turns", 3), strict=True)
    assert all(abs(one - other) > 1e-6 for one, other in changes)


def test_what_generate_is_fed_is_the_beginning_of_what_was_trained(bundle: ModelBundle, folder: Path) -> None:
    conversation_encoder = bundle.conversation_encoder(prompt="Say it.")
    for record in corpus_of(bundle, folder).sources[0].dataset.records():
        layouts, conversation = conversation_encoder.layouts(record), conversation_encoder.conversations(record)[0]
        row = conversation_encoder.encode_conversation(conversation, layouts, verify=True)
        shown = sum(message.num_images for message in conversation[:-1])
        fed = conversation_encoder.encode_prompt(conversation[:-1], layouts[:shown])
        assert row.spans[-1].start == len(fed.ids)
        assert row.ids[: len(fed.ids)].tolist() == fed.ids.tolist()


def test_tokens_of_rows_and_columns_are_single_and_never_said(bundle: ModelBundle) -> None:
    tokens = bundle.processing.tiling.tokens
    for token in (IMAGE, *tokens):
        assert len(bundle.tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    ids = {bundle.tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, *tokens)}
    assert bundle.inner.generation_config is not None
    assert ids <= set(bundle.inner.generation_config.suppress_tokens)  # pyrefly: ignore
    assert bundle.inner.get_input_embeddings().weight.shape[0] >= len(bundle.tokenizer)  # pyrefly: ignore
