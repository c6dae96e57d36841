"""`sightline score` as a user calls it: every file format, the JSON contract, and one clear line for each kind of bad input."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caption_scores.json").read_text("utf-8"))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` configures logging for the process; other tests get it back as it was."""
    logger = logging.getLogger("sightline")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logger.level)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs `sightline score` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main(["score", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def write(path: Path, value: Any) -> Path:
    """A JSON file; a list that is named .jsonl as JSON lines; a text as it is."""
    if isinstance(value, str):
        path.write_text(value, "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in value), "utf-8")
    else:
        path.write_text(json.dumps(value), "utf-8")
    return path


def coco(folder: Path) -> tuple[Path, Path]:
    """The golden captions as COCO results and annotations."""
    items = GOLDEN["items"]
    annotations = [
        {"id": 100 * item["id"] + index, "image_id": item["id"], "caption": text}
        for index in range(5)
        for item in items
        for text in item["references"][index : index + 1]
    ]
    images = [{"id": item["id"], "file_name": f"{item['id']}.jpg"} for item in items]
    results = [{"image_id": item["id"], "caption": item["candidate"]} for item in reversed(items)]
    return (
        write(folder / "results.json", results),
        write(folder / "annotations.json", {"info": {}, "images": images, "annotations": annotations}),
    )


def jsonl(folder: Path) -> tuple[Path, Path]:
    items = GOLDEN["items"]
    return (
        write(folder / "p.jsonl", [{"record_id": str(item["id"]), "text": item["candidate"], "tokens": 3} for item in items]),
        write(folder / "r.jsonl", [{"id": item["id"], "references": item["references"]} for item in items]),
    )


def records(folder: Path) -> tuple[Path, Path]:
    items = GOLDEN["items"]
    lines = [{"id": str(item["id"]), "images": ["a.png"], "captions": item["references"], "split": "val"} for item in items]
    return (
        write(folder / "p.jsonl", [{"id": item["id"], "text": item["candidate"]} for item in items]),
        write(folder / "records.jsonl", lines),
    )


@pytest.mark.parametrize("form", [coco, jsonl, records])
def test_every_file_format_gives_the_official_values(form: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = form(tmp_path)
    code, out, err = call(
        capsys, "bleu,rouge,cider", "--predictions", predictions, "--references", references, "--json", "--resamples", 100
    )
    assert code == 0, err
    scores = json.loads(out)
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    for name, score in scores.items():
        assert set(score) == {"value", "low", "high", "n"}
        assert score["value"] == pytest.approx(GOLDEN["corpus"][name], rel=1e-12, abs=1e-15)
        assert score["low"] <= score["value"] <= score["high"]
        assert score["n"] == len(GOLDEN["items"])
    assert "only 12 images" in err  # CIDEr-D on few images says so


def test_people_get_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = coco(tmp_path)
    code, out, _ = call(capsys, "rouge", "--predictions", predictions, "--references", references)
    assert code == 0
    assert "12 predictions" in out
    assert f"{GOLDEN['corpus']['rouge_l']:.4f}" in out
    assert "95 % interval" in out


def test_items_are_written_with_id_text_and_every_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = jsonl(tmp_path)
    path = tmp_path / "items.jsonl"
    arguments = ["bleu, cider", "--predictions", predictions, "--references", references, "--per-item", path, "--json"]
    assert call(capsys, *arguments)[0] == 0
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [str(item["id"]) for item in GOLDEN["items"]]
    for line, item in zip(lines, GOLDEN["items"], strict=True):
        assert line["text"] == item["candidate"]
        for name in ("bleu_1", "bleu_4", "cider_d"):
            assert line[name] == pytest.approx(item[name], rel=1e-12, abs=1e-15)


def test_seed_and_resamples_reach_the_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = jsonl(tmp_path)
    base = ["rouge", "--predictions", predictions, "--references", references, "--json"]
    outputs = {call(capsys, *base, *more)[1] for more in ([], ["--seed", 1], ["--resamples", 50])}
    assert len(outputs) == 3
    assert call(capsys, *base)[1] == call(capsys, *base)[1]


def test_idf_takes_document_frequencies_from_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": 1, "text": "a dog runs"}])
    references = write(tmp_path / "r.jsonl", [{"id": 1, "references": ["a dog runs"]}])
    annotations = [{"image_id": image, "caption": f"caption {image}"} for image in range(200)]
    corpus = write(tmp_path / "corpus.json", {"annotations": annotations})
    base = ["cider", "--predictions", predictions, "--references", references, "--json"]
    code, out, err = call(capsys, *base)
    assert (code, json.loads(out)["cider_d"]["value"]) == (0, 0.0)
    assert "every value is 0" in err
    code, out, err = call(capsys, *base, "--idf", corpus)
    assert (code, err) == (0, "")
    assert json.loads(out)["cider_d"]["value"] == pytest.approx(7.5)
    code, _, err = call(capsys, "bleu", *base[1:], "--idf", corpus)
    assert code == 2
    assert "'cider' is not among the metrics" in err


def test_answers_are_scored_from_vqa_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(tmp_path / "r.json", [{"question_id": 7, "answer": "two"}, {"question_id": 8, "answer": "red"}])
    answers = {7: ["2"] * 10, 8: ["red"] * 2 + ["blue"] * 8}
    annotations = [
        {"question_id": key, "image_id": 1, "answers": [{"answer": text, "answer_id": 1} for text in texts]}
        for key, texts in answers.items()
    ]
    references = write(tmp_path / "a.json", {"annotations": annotations})
    code, out, err = call(capsys, "vqa,exact", "--predictions", results, "--references", references, "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert scores["vqa_accuracy"]["value"] == pytest.approx((1.0 + 0.6) / 2)
    assert scores["exact_match"]["value"] == 0.5


def test_answers_are_scored_from_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "105"}]
    predictions = write(tmp_path / "p.jsonl", [{"id": "a", "text": "101"}, {"id": "b", "text": "helo"}])
    references = write(
        tmp_path / "records.jsonl",
        [{"id": "a", "messages": turns}, {"id": "b", "messages": turns, "answers": ["hello", "hi"]}],
    )
    code, out, err = call(capsys, "relaxed,anls", "--predictions", predictions, "--references", references, "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert scores["relaxed_accuracy"]["value"] == 0.5  # 101 is within 5 % of 105
    assert scores["anls"]["value"] == pytest.approx((1 - 1 / 3 + 0.8) / 2)


def test_references_without_prediction_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": 2, "text": "a dog"}])
    references = write(tmp_path / "r.jsonl", [{"id": key, "references": ["a dog"]} for key in range(5)])
    arguments = ["rouge", "--predictions", predictions, "--references", references]
    code, out, err = call(capsys, *arguments, "--json")
    assert (code, json.loads(out)["rouge_l"]["n"]) == (0, 1)
    assert "4 of 5 references have no prediction and are left out, such as '0', '1', '3', ..." in err
    assert "4 references without a prediction left out" in " ".join(call(capsys, *arguments)[1].split())


GOOD = [{"id": 1, "text": "a dog"}]
REFERENCES = [{"id": 1, "references": ["a dog"]}]


@pytest.mark.parametrize(
    ("predictions", "references", "said"),
    [
        (
            [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}],
            REFERENCES,
            "p.jsonl, line 2: a second prediction for '1' (first: line 1)",
        ),
        ([{"id": 1, "text": "a"}, {"id": 3, "text": "b"}], REFERENCES, "1 of 2 predictions have no reference, such as '3'"),
        ('{"id": 1, "text": "a"}\n\n{"id": 2, "te', REFERENCES, "p.jsonl, line 3, column"),
        ('[{"image_id": 1, "caption": "a"},\n {"image_id": 2, "caption" "b"}]', REFERENCES, "p.jsonl, line 2, column 28"),
        ("", REFERENCES, "p.jsonl is empty"),
        ("[]", REFERENCES, "p.jsonl holds no predictions"),
        ('{"id": 1, "text": "a", "crc32": "00000000"}', REFERENCES, "p.jsonl, line 1: its checksum 'crc32' does not fit"),
        ('{"id": 1, "text": "a"}\n5', REFERENCES, "p.jsonl, line 2: expected an object, not int"),
        ("[1]", REFERENCES, "p.jsonl, entry 0: expected an object, not int"),
        ([{"id": 1, "caption": "a"}], REFERENCES, "this entry has 'caption', 'id'"),
        ([{"id": 1, "text": None}], REFERENCES, "'text' must be a text, not NoneType"),
        ([{"id": True, "text": "a"}], REFERENCES, "'id' must be a text or an integer, not True"),
        ('{"id": 1, "text": "\\ud83d"}', REFERENCES, "an invalid character"),
        (GOOD, "", "r.jsonl is empty"),
        (GOOD, [*REFERENCES, *REFERENCES], "r.jsonl, line 2: a second line for '1' (first: line 1)"),
        (GOOD, [{"id": 1, "references": []}], "line 1: 'references', 'captions', 'answers' and 'messages' are all missing"),
        (GOOD, [{"id": 1, "references": "a dog"}], "'references' must be a list of texts, not str"),
        (GOOD, [{"id": 1, "references": [3]}], "'references' must be a text, not int"),
        (GOOD, [{"references": ["a"]}], "needs 'id'; this one has 'references'"),
        (GOOD, '{"images": [],\n "annotations": [}', "r.jsonl, line 2, column 18"),
        (GOOD, '{"images": [],\n "x": []}', "expected annotations"),
        (GOOD, '{"annotations": [{"image_id": 1}]}', "annotation 0: needs 'image_id' and 'caption'"),
        (GOOD, "5", "expected annotations or JSON lines, not int"),
        (GOOD, '{"id": 1, "references": ["a"]}\n{"id": 2', "r.jsonl, line 2, column"),
        (GOOD, '{"annotations": []}', "r.jsonl holds no references"),
        (GOOD, [{"id": 1, "messages": [{"role": "user", "content": "x"}]}], "1 ids have no reference, such as '1'"),
        (GOOD, [{"id": 1, "messages": 5}], "'messages' must be a list"),
    ],
)
def test_bad_files_get_one_line_that_names_the_place(
    predictions: Any, references: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "p.jsonl", predictions), write(tmp_path / "r.jsonl", references)
    code, out, err = call(capsys, "rouge", "--predictions", files[0], "--references", files[1], "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error[data]: ")
    assert said in err
    assert err.count("\n") == 1


def test_separators_inside_a_text_do_not_end_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": 1, "text": "a\u2028dog\x0cruns"}])
    references = write(tmp_path / "r.jsonl", [{"id": 1, "references": ["a dog\u2029runs"]}])
    code, out, err = call(capsys, "rouge", "--predictions", predictions, "--references", references, "--json")
    assert code == 0, err
    assert json.loads(out)["rouge_l"]["value"] == pytest.approx(1.0)


def test_missing_and_undecodable_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(tmp_path / "r.jsonl", REFERENCES), tmp_path / "p.jsonl"
    code, _, err = call(capsys, "rouge", "--predictions", bad, "--references", good)
    assert code == 2
    assert "p.jsonl: No such file or directory" in err
    bad.write_bytes(b'{"id": 1, "text": "caf\xe9"}')
    code, _, err = call(capsys, "rouge", "--predictions", bad, "--references", good)
    assert code == 2
    assert "byte 22 is not UTF-8" in err


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("meteor", "METEOR is not offered"),
        ("ciderr", "Did you mean 'cider'?"),
        ("spice", "no metric 'spice'. Known are"),
        (" , ", "no metric is named"),
    ],
)
def test_metrics_that_do_not_exist_are_refused(metrics: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "p.jsonl", GOOD), write(tmp_path / "r.jsonl", REFERENCES)
    code, out, err = call(capsys, metrics, "--predictions", files[0], "--references", files[1])
    assert (code, out) == (2, "")
    assert said in err


def test_vqa_accuracy_refuses_items_with_one_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "p.jsonl", GOOD), write(tmp_path / "r.jsonl", REFERENCES)
    code, _, err = call(capsys, "vqa", "--predictions", files[0], "--references", files[1])
    assert code == 2
    assert "'1', have fewer than 4 human answers" in err
    assert "Use 'exact'" in err


def test_empty_texts_are_scored_and_empty_references_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = write(tmp_path / "p.jsonl", [{"id": 1, "text": ""}, {"id": 2, "text": "a dog"}])
    references = write(tmp_path / "r.jsonl", [{"id": 1, "references": ["a dog"]}, {"id": 2, "references": ["a dog", " "]}])
    code, out, err = call(capsys, "bleu,rouge,cider", "--predictions", predictions, "--references", references, "--json")
    assert code == 0
    assert json.loads(out)["rouge_l"]["value"] == pytest.approx(0.5)
    assert "1 references are empty" in err


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = jsonl(tmp_path)
    items = tmp_path / "nowhere" / "items.jsonl"
    arguments = ["rouge", "--predictions", predictions, "--references", references, "--per-item", items]
    code, _, err = call(capsys, *arguments)
    assert code == 5
    assert "nowhere" in err
