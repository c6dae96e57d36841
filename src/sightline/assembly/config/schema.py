"""The schema of a run: every key that a recipe, a `--config` file or a `key=value` argument may set.

Sections of single parts (connector, objective, tiling, a part's rate) live beside their class; here they are put together, and
what must hold between them is checked before anything is downloaded or built.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from sightline.config import Config
from sightline.data.images.preparation import Fit
from sightline.data.images.tilings import AnyTiling, WholeConfig
from sightline.data.samples.encoding import Policy
from sightline.models import dual
from sightline.models.connectors import AnyConnector
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.dual import DualConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.models.vlm import PARTS
from sightline.objectives import AnyObjective
from sightline.objectives.next_token import NextTokenConfig
from sightline.training.optim import Schedule
from sightline.training.stages import PartRule, unknown_part

Part = Literal["vision", "connector", "language", "tiling"]


class FromConfig(Config):
    """Takes parts of a vision-language model; parts that the run names itself have precedence."""

    path: str
    """A run, a model folder, or a Hub id of a LLaVA, LLaVA-NeXT, Idefics3 or SmolVLM."""
    parts: tuple[Part, ...] = Field(default=("vision", "language"), min_length=1, strict=False)
    """What is taken: `vision` with its preparation, `language` with tokenizer and chat template, `connector` with its learned
    separators, `tiling`."""


class ModelConfig(Config):
    """The parts of the model. Without `vision` it is a decoder alone, for text."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    from_: Annotated[FromConfig | None, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)] = (
        Field(default=None, alias="from")
    )
    """A vision-language model whose parts initialise this one; a path alone takes its encoder and decoder."""
    vision: VisionConfig | None = None
    """The encoder."""
    fit: Fit = "encoder"
    """How images are fitted to the encoder's input: `encoder` (as its image processor does), `squash`, `crop` or `pad`."""
    draft: bool = False
    """Decode JPEGs at reduced resolution where sufficient: faster, but not bit-equal to the encoder's image processor."""
    tiling: AnyTiling = WholeConfig()
    """How an image becomes crops."""
    connector: AnyConnector = MLPConfig()
    """Maps encoder outputs to the decoder's embedding space."""
    language: LanguageConfig | None = None
    """The decoder; must be given here or by `from`."""
    compat: Literal["seemore"] | None = None
    """`seemore`: sets all keys that bring back the faults of the published seemore and seeMoE (docs/methods/seemore.md). Keys that
    are given as `key=value` have precedence."""
    dual: DualConfig | None = None
    """A dual encoder instead: `vision` and a text encoder whose vectors are compared, or a whole CLIP or SigLIP."""

    @model_validator(mode="after")
    def _one_kind(self) -> "ModelConfig":
        if self.dual is None:
            if self.tiling.kind == "boxes":
                raise ValueError("tiling 'boxes' belongs to a dual encoder with light networks (model.dual.alignment)")
            return self
        if self.language is not None or self.from_ is not None:
            raise ValueError("a dual encoder (dual) has no decoder; leave out 'language' and 'from'")
        if self.tiling.kind != "whole":
            raise ValueError("a dual encoder compares one vector per image; leave out 'tiling'")
        if (self.dual.path is None) == (self.vision is None):
            raise ValueError("a dual encoder is either dual.path (a whole one) or 'vision' with dual.text")
        if self.vision is not None and not self.vision.drop_class_token:
            raise ValueError("dual.pooling makes one vector of an image; leave out vision.drop_class_token")
        return self

    @model_validator(mode="after")
    def _fits_tiling(self) -> "ModelConfig":
        if self.tiling.kind != "whole" and self.fit != "encoder":
            raise ValueError(f"fit={self.fit!r} applies to tiling 'whole' only; tiling {self.tiling.kind!r} resizes images itself")
        if self.tiling.kind != "whole" and self.draft:
            raise ValueError(f"draft decodes images at the size of one crop; tiling {self.tiling.kind!r} needs full resolution")
        return self

    def takes(self, part: Part) -> bool:
        """Tells whether a part is taken from `from`; for a resolved section."""
        return self.from_ is not None and part in self.from_.parts

    @property
    def sees(self) -> bool:
        """Whether the model has an encoder."""
        return self.dual is not None or self.vision is not None or (self.from_ is not None and "vision" in self.from_.parts)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the model's parts, for which a stage sets learning rates."""
        if self.dual is not None:
            return dual.PARTS if self.dual.alignment is None else (*dual.PARTS, "alignment")
        return PARTS if self.sees else ("language",)


class SourceConfig(Config):
    """One data set of a mixture."""

    path: str
    """A dataset folder."""
    split: str = "train"
    """Split of `path` to train on."""
    name: str = ""
    """Name in the log (`nll/NAME`); the folder's name by default."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the epoch, relative to the other weights; an epoch has as many samples as all sources together."""
    epochs: float | None = Field(default=None, gt=0)
    """How often an epoch of the run goes through this source; 1 by default."""
    prompt: str | None = None
    """Prompt of this source's caption records; `data.prompt` by default."""


class DataConfig(Config):
    """The training data and how it becomes rows."""

    path: str | None = None
    """A dataset folder (made by `sightline data prepare`)."""
    mixture: tuple[SourceConfig, ...] = ()
    """Several dataset folders instead of `path`."""
    split: str = "train"
    """Split of `path` to train on."""
    validation_split: str | None = "val"
    """Split for in-loop validation; a data set without it is trained without."""
    features: str | None = None
    """A feature store (made by `sightline data features`): the frozen encoder's outputs are read instead of computed."""
    prompt: str = ""
    """Text of the user turn of caption records, after the image."""
    captions: Literal["all", "first", "one"] = "all"
    """Train on all captions of a record, or on its first only; with pairs also on `one`, drawn anew in each epoch."""
    drop_images: bool = False
    """Remove the images and keep the text: to pre-train a decoder, or for a text-only baseline."""
    template: str = "auto"
    """Chat template: `auto` (the tokenizer's own, else `plain`), or `plain`, `chatml`, `vicuna`."""
    supervise: Policy = "assistant"
    """Which tokens are predicted."""
    max_tokens: int = Field(default=2048, ge=8, le=1 << 20)
    """Maximum length of a conversation in tokens."""
    too_long: Literal["skip", "truncate"] = "skip"
    """What to do with a longer conversation."""
    pack: bool = True
    """Put several samples in one row."""
    row_tokens: int | None = Field(default=None, ge=8, le=1 << 20)
    """Length of a packed row; `max_tokens` by default."""
    row_images: int = Field(default=64, ge=1)
    """Maximum number of crops in a packed row."""
    share_prefix: bool = True
    """Captions or questions of one image share its visual tokens in one row."""
    sort_by_length: bool = True
    """Without packing: put samples of similar length together."""
    max_skipped: float = Field(default=0.01, ge=0, le=1)
    """Largest share of conversations that may be left out."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many samples of the split (a fixed random subset), for studies of data size."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Label noise, for studies: share of the records whose texts are exchanged between images. Never in validation or `eval`."""
    noise_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed for choosing these records."""
    keep_pixels: int = Field(default=512, ge=0)
    """Megabytes of prepared pixels that are kept in memory (per process that reads), so that small sets are decoded once."""
    workers: int = Field(default=0, ge=0, le=256)
    """Processes that read and decode; 0 does it in the training process."""
    worker_timeout: float = Field(default=120.0, gt=0)
    """Seconds without a batch after which a worker counts as dead."""

    @model_validator(mode="after")
    def _one_origin(self) -> "DataConfig":
        if self.path is not None and self.mixture:
            raise ValueError("give either 'path' or 'mixture'")
        return self

    @property
    def width(self) -> int:
        """Length of a packed row."""
        return self.row_tokens or self.max_tokens


class TrainConfig(Config):
    """Length, batch size, optimiser, and intervals of checkpoints and validation of a stage."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data, instead of `steps`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of weights, order and all random numbers."""
    batch_size: int | None = Field(default=None, ge=1)
    """Rows per step over all processes: samples when `data.pack` is off, packed rows when it is on."""
    batch_tokens: int | None = Field(default=None, ge=8)
    """Tokens per step over all processes, padding included, for packed rows; instead of `batch_size`."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per step."""
    lr: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate of parts without a rate of their own."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up, down to `floor`."""
    warmup: float = Field(default=0.03, ge=0)
    """Share of the steps if below 1, else a number of steps."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW; see `decay_all`."""
    decay_all: bool = False
    """Decay biases and norms too (plain AdamW); by default only what has two or more dimensions."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of AdamW's step."""
    clip: float = Field(default=1.0, ge=0)
    """Maximum gradient norm; 0 does not clip."""
    checkpoint_every: int = Field(default=500, ge=0)
    """Steps between checkpoints; 0 saves only at the end of a stage."""
    keep: int = Field(default=2, ge=2)
    """Number of recent checkpoints to keep, besides the best one and the ends of stages."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between in-loop validations; 0 validates at the end of a stage."""
    evaluate_samples: int = Field(default=64, ge=0)
    """Samples of the validation split per in-loop validation; 0 for none."""
    generate_samples: int = Field(default=4, ge=0)
    """For how many of them text is generated and logged."""
    best: Literal["loss", "score"] = "loss"
    """Which checkpoint is the best: of the lowest validation loss, or of the best score of the generated texts."""
    best_task: str = "caption"
    """Task whose headline score counts with `best: score`."""

    @model_validator(mode="after")
    def _one_of_each(self) -> "TrainConfig":
        if self.best == "score" and not (self.generate_samples and self.evaluate_samples):
            raise ValueError("best='score' needs texts to score: give 'evaluate_samples' and 'generate_samples', about 200 each")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either 'steps' or 'epochs'")
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError("give either 'batch_size' or 'batch_tokens'")
        return self


class StageConfig(Config):
    """One stage: what it trains, and keys that differ from the run's sections."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """For the table, the log and `init: RUN@STAGE`."""
    parts: dict[str, PartRule]
    """Part of the model (`vision`, `connector`, `language`) -> `frozen`, `train` (at `train.lr`), a learning rate, or
    `{lr, weight_decay, lora}`; a part not named is frozen."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Keys of `data` that differ in this stage."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Keys of `objective` that differ in this stage."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of `train` that differ in this stage."""


class RuntimeConfig(Config):
    """Device and arithmetic; nothing here changes results beyond rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the model; `auto` takes CUDA, else MPS, else the CPU."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic: bf16 or fp16 autocast over fp32 weights, or fp32; `auto` is bf16 on GPUs that have it. fp16 scales the loss, for
    GPUs without bf16 (T4); not with `shard`."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; all by default."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex"] = "auto"
    """Attention kernel of encoder and decoder; `auto` is sdpa, and on CUDA `flex` where it works. `flex` trains the decoder on
    packed rows with FlexAttention, which skips what samples of a row do not see of each other; all else runs on sdpa."""
    compile: Literal["auto", "layers", "off"] = "auto"
    """Compile each layer of decoder and encoder for training; `auto` does so on CUDA, with `data.pack`, for dense decoders."""
    cross_entropy: Literal["auto", "chunked", "cut"] = "auto"
    """Kernel of the loss: `chunked` goes over chunks of tokens, `cut` is the package cut_cross_entropy (`sightline[gpu]`) where the
    head is frozen and has no bias, in bf16; `auto` takes `cut` on CUDA where it is installed."""
    deterministic: bool | None = None
    """Allow only deterministic kernels, so that a repeated run is bit-identical; slower on a GPU, free on a CPU, where it is the
    default."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    shard: bool = False
    """Split weights, gradients and optimiser state over the processes (FSDP2) in stages that train the decoder, for models that do
    not fit on each GPU. One process splits nothing."""
    deadline: float = Field(default=600.0, gt=0)
    """Timeout in seconds for communication between processes."""

    @model_validator(mode="after")
    def _shards_without_scaling(self) -> "RuntimeConfig":
        if self.shard and self.dtype == "fp16":
            raise ValueError("shard=true does not work with dtype=fp16; set dtype to bf16 or fp32")
        return self


class TrackingConfig(Config):
    """Where metrics go beside `metrics.jsonl`."""

    trackers: tuple[Literal["mlflow", "tensorboard", "trackio", "wandb"], ...] = ()
    """Services that get the numbers of the log; each needs its package."""
    project: str = "sightline"
    """Name of the project in these services."""


class RunConfig(Config):
    """The configuration of a run."""

    recipe: str = "custom"
    """Name of the recipe that it is based on."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    objective: AnyObjective = NextTokenConfig()
    """The loss."""
    train: TrainConfig = TrainConfig()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """Stages that run one after the other."""
    init: str | None = None
    """Run (`RUN` or `RUN@STAGE`) or model folder whose weights initialise this run."""
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _stages_fit(self) -> "RunConfig":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {', '.join(names)}")
        for stage in self.stages:
            for part in stage.parts:
                if part not in self.model.part_names:
                    hint = "" if self.model.sees else " An encoder and a connector need model.vision."
                    raise ValueError(unknown_part(stage.name, part, self.model.part_names) + hint)
        if self.data.features is not None and not self.model.sees:
            raise ValueError("data.features needs model.vision")
        self._check_pairs()
        trained = ""
        for stage in self.stages:
            if trained and stage.data.get("features", self.data.features) is not None:
                raise ValueError(f"stage {stage.name!r} takes data.features of an encoder that stage {trained!r} has trained")
            if stage.parts.get("vision", "frozen") != "frozen":
                trained = trained or stage.name
        return self

    def _check_pairs(self) -> None:
        if self.objective.compares_pairs != (self.model.dual is not None):
            if self.model.dual is None:
                raise ValueError(f"objective {self.objective.kind!r} compares images with texts: it needs model.dual")
            raise ValueError("a dual encoder (model.dual) needs objective.kind info_nce or pairwise_sigmoid, or comalign")
        has_networks = self.model.dual is not None and self.model.dual.alignment is not None
        if self.objective.kind == "comalign" and not has_networks:
            raise ValueError("objective 'comalign' compares components: it needs model.dual.alignment")
        if has_networks and self.objective.kind != "comalign":
            raise ValueError("model.dual.alignment is trained by objective.kind=comalign")
        if self.model.dual is not None and self.model.dual.alignment is not None:
            counts = {"entity": self.model.dual.alignment.entities, "relation": self.model.dual.alignment.relations}
            for level in getattr(self.objective, "levels", ()):
                if counts.get(level) == 0:
                    raise ValueError(f"objective.levels names {level!r}, but model.dual.alignment has no such components")


class StagePlan(Config):
    """A stage with its merged sections."""

    name: str
    parts: dict[str, PartRule]
    data: DataConfig
    objective: AnyObjective
    train: TrainConfig

    @model_validator(mode="after")
    def _complete(self) -> "StagePlan":
        if self.train.steps is None and self.train.epochs is None:
            raise ValueError("train.steps or train.epochs must be given")
        if self.train.batch_size is None and self.train.batch_tokens is None:
            raise ValueError("train.batch_size or train.batch_tokens must be given")
        if self.train.batch_tokens is not None:
            if not self.data.pack:
                raise ValueError("train.batch_tokens counts packed rows; with data.pack=false give train.batch_size")
            if self.train.batch_tokens % self.data.width:
                raise ValueError(
                    f"train.batch_tokens={self.train.batch_tokens} is not a multiple of the row length {self.data.width}"
                )
        if self.data.width < self.data.max_tokens:
            raise ValueError(f"data.row_tokens={self.data.width} is less than data.max_tokens={self.data.max_tokens}")
        if self.data.supervise == "with_padding" and (self.data.pack or self.data.share_prefix):
            raise ValueError("data.supervise=with_padding needs data.pack=false and data.share_prefix=false")
        if self.objective.needs_padded_rows and (self.data.pack or self.data.share_prefix):
            raise ValueError("this objective needs rows of one sample: data.pack=false and data.share_prefix=false")
        if self.objective.compares_pairs and self.train.accumulate > 1:
            raise ValueError(
                f"train.accumulate={self.train.accumulate}: objective {self.objective.kind!r} compares all pairs of a step with "
                "each other, so its loss does not add over micro-batches; set train.accumulate=1 (frozen encoders read stored "
                "features, so that a large batch fits)"
            )
        if self.objective.compares_pairs and self.train.best == "score" and self.train.best_task != "retrieval":
            raise ValueError(
                f"train.best_task={self.train.best_task!r} scores generated texts; a dual encoder takes best_task=retrieval "
                "(the sum of recalls at 1) or best=loss"
            )
        if self.data.captions == "one" and not self.objective.compares_pairs:
            raise ValueError("data.captions=one draws pairs for a dual encoder; use all or first")
        if self.data.features is not None and self.parts.get("vision", "frozen") != "frozen":
            raise ValueError("data.features holds the outputs of a frozen encoder, but this stage trains vision")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step over all processes."""
        if self.train.batch_tokens is not None:
            return self.train.batch_tokens // self.data.width
        assert self.train.batch_size is not None
        return self.train.batch_size
