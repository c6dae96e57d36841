"""Compares caption metrics with the official programs: `python -m benchmarks.caption_metrics_parity FOLDER`.

FOLDER holds golden files: `golden_*.json` (items with candidate, references, their tokens, and the scores of pycocoevalcap), and
optionally `nlg_eval_example/` and `clipscore_example/` (texts with published scores). With `--jar` (stanford-corenlp-3.4.1.jar,
from the pycocoevalcap package; needs Java) it also tokenises every text of the given files, and generated strings, with both
programs. Prints the largest differences; the exit code is 1 where tokens differ or a score differs by more than 1e-6.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sightline.metrics import score_captions, tokenize_all
from sightline.metrics.ptb import PUNCTUATION
from sightline.types import Score

TOLERANCE = 1e-6
CORPUS_NAMES = {
    "BLEU-1": "bleu_1",
    "BLEU-2": "bleu_2",
    "BLEU-3": "bleu_3",
    "BLEU-4": "bleu_4",
    "CIDEr": "cider_d",
    "ROUGE_L": "rouge_l",
}
# pieces of generated strings: parts of contractions, abbreviations, numbers, addresses and emoticons
PIECES = r"""
a b n o s t x A B D O S T dog Dog the The can can't cannot gonna it they n't 's 'd 'll 've ai ou ' ' ’ ‘ ` " “ ” '' `` « »
. . , , ; : ! ? - - -- – — _ / | @ # $ % & ( ) [ ] { } < > = + ~ * \ ... … 1 2 5 10 99 1990 000 1/2 1-2 1,000 .5 12:30 (5)
U.S a.m. p.m. Mr. St. Jr. Inc. Co. etc. Jan. no. fig. Ph.D. e.g. Sino- http:// www. .com .org .jpg .x @x.com &amp; &AMP; &lt;
&quot; &apos; &nbsp; &eacute; é ü ß 中 文 и م क ½ ² ₂ ° £ € ¢ ™ ♥ 😀 、 :) ;-) :D ^_^ 'tis 'em 'n' ol' y' l' d' O' cap'n S&P-500
R&D pro- C++ C# <b> <br/>
"""


def main(arguments: list[str] | None = None) -> int:
    """Compares and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of golden files")
    parser.add_argument("--jar", type=Path, help="stanford-corenlp-3.4.1.jar")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="text, JSON or JSON lines files for --jar")
    parser.add_argument("--generated", type=int, default=0, help="number of generated strings for --jar")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    is_equal = True
    for path in sorted(options.folder.glob("golden_*.json")):
        is_equal &= compare_golden(path)
    is_equal &= compare_examples(options.folder)
    if options.jar is not None:
        for path in options.texts:
            is_equal &= compare_tokens(path.name, list(strings_of(path)), options.jar)
        if options.generated:
            is_equal &= compare_tokens("generated, each with a guard line", generate(options.generated, options.seed), options.jar)
    return 0 if is_equal else 1


def compare_golden(path: Path) -> bool:
    """Compares tokens and scores of every item of a golden file."""
    golden = json.loads(path.read_text("utf-8"))
    items = golden["items"]
    begin = time.perf_counter()
    scores = score_captions([item["candidate"] for item in items], [item["references"] for item in items])
    seconds = time.perf_counter() - begin
    texts = [item["candidate"] for item in items], [text for item in items for text in item["references"]]
    expected = [item["candidate_tok"] for item in items], [text for item in items for text in item["references_tok"]]
    found = [[" ".join(tokens) for tokens in tokenize_all(group)] for group in texts]
    wrong = sum(a != b for mine, theirs in zip(found, expected, strict=True) for a, b in zip(mine, theirs, strict=True))
    print(f"{path.name}: {len(items)} items, {sum(map(len, texts))} texts, {wrong} with other tokens, {seconds:.2f} s")
    largest = 0.0
    for official, name in CORPUS_NAMES.items():
        corpus = abs(scores[name].value - golden["corpus"][official])
        worst, index = max((abs(a - b), k) for k, (a, b) in enumerate(zip(scores[name].items, _items(items, name), strict=True)))
        largest = max(largest, corpus, worst)
        print(f"  {name:8} {scores[name].value:.6f}  corpus {corpus:.1e}  worst item {worst:.1e} ({items[index]['id']})")
    return not wrong and largest <= TOLERANCE


def _items(items: list[dict[str, Any]], name: str) -> list[float]:
    if name.startswith("bleu_"):
        return [item["bleu"][int(name[-1]) - 1] for item in items]
    return [item["cider" if name == "cider_d" else name] for item in items]


def compare_examples(folder: Path) -> bool:
    """Compares two small published examples, to their published digits."""
    is_equal = True
    nlg = folder / "nlg_eval_example"
    if nlg.is_dir():
        lines = [(nlg / name).read_text("utf-8").splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt")]
        expected = json.loads((nlg / "expected.json").read_text("utf-8"))
        scores = score_captions(lines[0], list(zip(lines[1], lines[2], strict=True)))
        is_equal &= _compare_published("nlg-eval", scores, expected["hyp.txt vs ref1.txt+ref2.txt"], 1e-6)
        one = score_captions(["this is a good test"], [["this is a test", "this is also a test"]])
        key = next(name for name in expected if name.startswith("one pair"))
        is_equal &= _compare_published("nlg-eval, one pair", one, expected[key], 1e-6)
    clip = folder / "clipscore_example"
    if clip.is_dir():
        references = json.loads((clip / "refs.json").read_text("utf-8"))
        expected = json.loads((clip / "expected.json").read_text("utf-8"))
        for name in ("good_captions.json", "bad_captions.json"):
            captions = json.loads((clip / name).read_text("utf-8"))
            scores = score_captions(list(captions.values()), [references[key] for key in captions])
            is_equal &= _compare_published(f"clipscore, {name}", scores, expected[name], 5e-5)
    return is_equal


def _compare_published(title: str, scores: dict[str, Score], expected: dict[str, float], tolerance: float) -> bool:
    differences = {
        name: abs(scores[name].value - expected[official]) for official, name in CORPUS_NAMES.items() if official in expected
    }
    worst = max(differences, key=lambda name: differences[name])
    print(f"{title}: largest difference {differences[worst]:.1e} ({worst}), published to {tolerance:.0e}")
    return differences[worst] <= tolerance


# Against the Java program ---------------------------------------------------------------------------------------------------


def compare_tokens(title: str, texts: Sequence[str], jar: Path) -> bool:
    """Tokenises the texts with both programs and prints the first differences."""
    texts = [" ".join(text.splitlines()) for text in texts]  # the Java program would take each line as a caption of its own
    begin = time.perf_counter()
    mine = tokenize_all(texts)
    seconds = time.perf_counter() - begin
    theirs = official_tokens(texts, jar)
    wrong = [(text, a, b) for text, a, b in zip(texts, mine, theirs, strict=True) if a != b]
    print(f"{title}: {len(texts)} texts, {sum(map(len, mine))} tokens, {len(wrong)} texts differ, {seconds:.2f} s")
    for text, a, b in wrong[:10]:
        print(f"  {text!r}\n    here {a}\n    Java {b}")
    return not wrong


def official_tokens(texts: Sequence[str], jar: Path) -> list[list[str]]:
    """Returns the tokens of pycocoevalcap: one text per line through the Java program, then punctuation removed."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".txt") as file:
        file.write("\n".join(texts))
        file.flush()
        program = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run([*program, "-preserveLines", "-lowerCase", file.name], capture_output=True, check=True)
    lines = done.stdout.decode("utf-8").split("\n")[: len(texts)]
    return [[token for token in line.rstrip().split(" ") if token and token not in PUNCTUATION] for line in lines]


def strings_of(path: Path) -> Iterator[str]:
    """Yields every string value of a JSON or JSON lines file; the lines of any other file."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        yield from _strings(json.loads(text))
    elif path.suffix == ".jsonl":
        for line in text.split("\n"):
            if line.strip():
                yield from _strings(json.loads(line))
    else:
        yield from text.split("\n")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def generate(count: int, seed: int) -> list[str]:
    """Generates strings from difficult pieces; a line "0" after each keeps it from being the context of the next."""
    chance = random.Random(seed)
    pieces = PIECES.split() + [" "] * 40
    texts = []
    for _ in range(count):
        texts += ["".join(chance.choice(pieces) for _ in range(chance.randint(1, 10))), "0"]
    return texts


if __name__ == "__main__":
    sys.exit(main())
