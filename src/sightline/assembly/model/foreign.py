"""Tries the tokenizer and the chat template of a model folder in a guarded child process before this process uses them.

A pattern or a template may take for ever, all memory, or crash the process. What passed once in this process is not tried again.
Measured on two busy cores: 0.6 s for a folder, once; 0.1 ms for each text afterwards.
"""

import hashlib
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from sightline.data.samples.templates import TEMPLATES, Template
from sightline.data.samples.tokenizing import limit_time
from sightline.data.samples.trial import TemplateTrial, TokenizerTrial, run_trial
from sightline.errors import ConfigError
from sightline.models import loading
from sightline.runtime.storage import sha256_file
from sightline.runtime.workers import GuardedPool, TaskFailure

TOKENIZER = "tokenizer.json"
TRIAL_SECONDS = 5.0
BYTES_PER_SECOND = 4 << 20  # by which a large file has longer
TRIAL_MEMORY = 4 << 30

_passed: set[str] = set()  # hashes of files and templates


def try_tokenizer(path: str) -> None:
    """Tries the `tokenizer.json` of a local folder or Hub id, where it has one.

    Raises:
        ConfigError: it takes too long or too much memory, or crashes.
        StorageError: a file beside it is far too large, or leads out of its folder.
    """
    file = _tokenizer_file(path)
    if file is None:
        return
    size = file.stat().st_size
    _run(TokenizerTrial(str(file)), sha256_file(file), f"the tokenizer {file}", TRIAL_SECONDS + size / BYTES_PER_SECOND)


def try_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Tries the chat template of a tokenizer; from now on each of its texts has a time limit.

    Raises:
        ConfigError: it takes too long or too much memory, or makes a text without end.
    """
    limit_time(tokenizer)
    if not isinstance(tokenizer.chat_template, str) or tokenizer.chat_template in TEMPLATES.values():
        return
    template = Template(tokenizer)
    digest = hashlib.sha256(f"{sorted(template.special_tokens.items())}\n{template.source}".encode("utf-8", "surrogatepass"))
    trial = TemplateTrial(template.source, template.special_tokens, template.takes_parts)
    _run(trial, digest.hexdigest(), f"the chat template of {str(tokenizer.name_or_path)!r}", TRIAL_SECONDS)


def _tokenizer_file(path: str) -> Path | None:
    if Path(path).is_dir():
        return Path(path) / TOKENIZER if (Path(path) / TOKENIZER).is_file() else None
    try:
        # The configuration too: transformers reads it for a tokenizer.
        found = [cached_file(path, name, _raise_exceptions_for_missing_entries=False) for name in ("config.json", TOKENIZER)]
    except Exception:  # whoever loads the tokenizer says why the Hub does not give it
        return None
    for folder in {Path(file).parent for file in found if file is not None}:
        loading.check_files(folder)
    return None if found[-1] is None else Path(found[-1])


def _run(trial: TokenizerTrial | TemplateTrial, digest: str, what: str, seconds: float) -> None:
    if digest in _passed:
        return
    with GuardedPool(run_trial, 1, seconds, TRIAL_MEMORY) as pool:
        outcome = pool.run(trial)
    if isinstance(outcome, TaskFailure):
        why = {
            "worker_timeout": f"did not finish a few short texts in {seconds:.0f} s",
            "worker_memory": f"took more than {TRIAL_MEMORY >> 30} GB of memory for a few short texts",
        }.get(outcome.reason, "crashed on a few short texts")
        raise ConfigError(f"{what} {why}.", "Do not use this model.")
    if outcome:
        raise ConfigError(f"{what} cannot be used: {outcome}.", "Do not use this model.")
    _passed.add(digest)
