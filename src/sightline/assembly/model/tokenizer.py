"""Tokenizers: the decoder's own, one from a folder, or one trained on the texts of the training split."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from sightline.assembly.model.foreign import try_template, try_tokenizer
from sightline.data.dataset import Dataset
from sightline.data.samples.templates import Template
from sightline.data.samples.tokenizing import tokenise
from sightline.errors import ConfigError
from sightline.models import loading
from sightline.models.composites import COMPOSITES
from sightline.models.language import LanguageConfig, TokenizerConfig
from sightline.models.loading import first_line
from sightline.runtime import hub
from sightline.types import IMAGE, Message, Part

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def build_tokenizer(config: LanguageConfig, texts: Iterable[str] | None) -> PreTrainedTokenizerBase | None:
    """Loads or trains the decoder's tokenizer; returns None where it is to be trained and no texts are given.

    Args:
        config: the decoder, with the origin of its tokenizer.
        texts: what a new tokenizer is trained on.

    Raises:
        ConfigError: the folder holds no tokenizer, or one without character offsets.
    """
    if isinstance(config.tokenizer, TokenizerConfig):
        return None if texts is None else train_tokenizer(texts, config.tokenizer)
    if config.tokenizer is None and config.path is not None and loading.read_config(config.path).model_type in COMPOSITES:
        return load_composite_tokenizer(config.path)
    return load_tokenizer(config.tokenizer or config.path or "")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder or Hub id.

    Raises:
        ConfigError: there is none, it gives no character offsets, or it or its chat template fails a trial (`foreign`).
        StorageError: a file in the folder is a link out of it.
    """
    is_local = hub.find_local(path, "tokenizer") is not None
    if not is_local:
        hub.check_reachable()
    loading.check_folder(path)
    try_tokenizer(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers may raise anything for a foreign or damaged file
        if not is_local:
            raise ConfigError(*hub.not_found(path, "tokenizer", first_line(error))) from error
        raise ConfigError(f"no tokenizer at {path!r}: {first_line(error)}", "Give model.language.tokenizer.") from error
    if tokenizer is None or not tokenizer.is_fast:
        raise ConfigError(f"the tokenizer at {path!r} gives no character offsets.", "Give a folder with a tokenizer.json.")
    try_template(tokenizer)
    return tokenizer


def load_composite_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a stock vision-language model, with a chat template that gives the text of the model's processor.

    Processors keep the chat template in a file of their own, and put the begin token before a text that lacks it; here the
    tokenizer's template does so.

    Raises:
        ConfigError: as in `load_tokenizer`.
    """
    tokenizer = load_tokenizer(path)
    if tokenizer.chat_template is None:
        found = ProcessorMixin.get_processor_dict(path)[0].get("chat_template")
        tokenizer.chat_template = found.get("default") if isinstance(found, dict) else found
        try_template(tokenizer)
    template, begin = tokenizer.chat_template, tokenizer.bos_token
    adds_begin = begin is not None and tokenise(tokenizer, "a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if isinstance(template, str) and adds_begin:
        text = Template(tokenizer).render((Message("user", (Part("a"),)),))
        if not text.startswith(str(begin)):
            tokenizer.chat_template = "{{ bos_token }}" + template
    return tokenizer


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of the configured kind; decoding restores the text (in lower case, if so configured).

    Byte-level BPE encodes any text; `characters` maps characters that `texts` lack to the unknown token.
    """
    return character_tokenizer(texts, config) if config.kind == "characters" else _byte_level_bpe(texts, config)


def character_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each character (code point) of some texts, the most frequent first."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text.lower() if config.lowercase else text)
    special = [PAD, BEGIN, END, UNKNOWN]
    known = sorted(counts, key=lambda character: (-counts[character], character))[: config.vocabulary - len(special)]
    core = Tokenizer(models.WordLevel({token: index for index, token in enumerate([*special, *known])}, unk_token=UNKNOWN))
    if config.lowercase:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN)


def _byte_level_bpe(texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    if config.lowercase:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, bos_token=BEGIN, eos_token=END)


def texts_of(datasets: Sequence[tuple[Dataset, str]]) -> Iterator[str]:
    """Yields all captions and message texts of some splits."""
    for dataset, split in datasets:
        for record in dataset.records(split):
            yield from record.captions
            for message in record.messages:
                yield message.text


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Adds special tokens that the tokenizer does not know yet."""
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)


def count_words(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the number of vocabulary entries that the decoder had before image and tile tokens were added.

    A tokenizer that already knows `<image>` is that of a vision-language model: the block of special tokens at its end, which
    holds `<image>`, was added to the decoder's own.
    """
    size, vocabulary = len(tokenizer), tokenizer.get_vocab()
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = size
    while words > 1 and words - 1 in special:
        words -= 1
    return words if vocabulary.get(IMAGE, -1) >= words else size
