"""What an experiment may say: the sections, their keys and types, checked before any job starts.

Sections with a ``_target_`` are checked against the signature of what they name, which is read from the source
(:mod:`espnet3.config.signature`): nothing is imported.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from espnet3.config.batch_types import check_batch_type
from espnet3.config.decoding import resolve_variants
from espnet3.config.signature import check_targets, parameters
from espnet3.config.tasks import expand_task
from espnet3.errors import UserError, did_you_mean

Target = dict[str, Any]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Section(BaseModel):
    """Unknown keys are refused: a misspelt key that is silently ignored costs a training run."""

    model_config = ConfigDict(extra="forbid", strict=False)


class Data(Section):
    """The corpus, its splits, and what an utterance must be like; durations in seconds."""

    corpus: str = Field(pattern=NAME)
    builder: Target
    train: str = Field(pattern=NAME)
    valid: str = Field(pattern=NAME)
    test: list[str] = Field(min_length=1)
    sampling_rate: int = Field(gt=0)
    min_duration: float = Field(ge=0)
    max_duration: float = Field(gt=0)
    max_rejected: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self):
        if self.min_duration >= self.max_duration:
            raise ValueError("min_duration must be below max_duration")
        if len(set(self.test)) != len(self.test):
            raise ValueError("a test set is listed twice")
        return self


class TokenizerSection(Section):
    """The kind of tokens; ``vocab_size`` counts the special ones too."""

    type: Literal["char", "word", "bpe"]
    vocab_size: int | None = Field(default=None, gt=3)

    @model_validator(mode="after")
    def _size(self):
        if self.type == "bpe" and self.vocab_size is None:
            raise ValueError("type 'bpe' needs vocab_size")
        return self


class Stats(Section):
    """Into how many shards the statistics are cut."""

    shards: int = Field(ge=1, le=1000)


class Decode(Section):
    """Decodings: the keys that all share, and ``variants``, a folder of results for each."""

    method: Literal["joint", "attention", "ctc_greedy", "ctc_beam", "transducer_greedy", "transducer_beam"]
    beam: int = Field(ge=1)
    ctc_weight: float = Field(ge=0, le=1)
    length_bonus: float
    maxlenratio: float
    minlenratio: float
    average: str = Field(pattern=r"^([\w.]+\.ave_[1-9][0-9]*best|epochs_[1-9][0-9]*-[1-9][0-9]*)$")
    shards: int = Field(ge=1, le=1000)
    batch_seconds: float = Field(gt=0)
    nbest: int = Field(default=1, ge=1)
    pre_beam_ratio: float = Field(default=1.5, ge=0)
    slots: int = Field(default=0, ge=0)
    lm_weight: float = Field(default=0.0, ge=0)
    ngram: str | None = None
    ngram_weight: float = Field(default=0.0, ge=0)
    timestamps: bool = False
    variants: dict[str, dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _variants(self):
        known = sorted(set(type(self).model_fields) - {"variants"})
        for name, keys in self.variants.items():
            for key in keys or {}:
                if key not in known:
                    raise ValueError(f"variant '{name}' has no key '{key}'{did_you_mean(key, known)}")
        return self


class LanguageModel(Section):
    """A Transformer language model of the experiment's own, for ``decode.lm_weight``."""

    model: Target
    transcripts: bool = True
    text: str | None = None
    batch_size: int = Field(default=32, ge=1)
    average: int = Field(default=3, ge=1)
    optimizer: Target
    scheduler: Target | None = None
    trainer: dict[str, Any]

    @model_validator(mode="after")
    def _text(self):
        if not self.transcripts and self.text is None:
            raise ValueError("transcripts: false needs text, a file of sentences")
        return self


class Score(Section):
    """How words are compared, and what is drawn anew for the confidence intervals."""

    normalize: Literal["none", "basic", "whisper"] = "none"
    bootstrap: Literal["utterance", "speaker", "none"] = "utterance"
    bootstrap_samples: int = Field(default=1000, ge=100, le=100_000)


class Parallel(Section):
    """Where runners run; see :mod:`espnet3.parallel`."""

    env: str
    n_workers: int = Field(ge=1)
    options: dict[str, Any] = {}
    submit: Target | None = None
    allow: list[str] = []


class Execution(Section):
    """How training runs (loader workers and Lightning's devices), and whether decodings share one encoder pass."""

    num_workers: int = Field(ge=0)
    accelerator: str
    devices: int | str | list[int]
    num_nodes: int = Field(ge=1)
    strategy: str | Target
    share_encoder: bool = True


class Experiment(Section):
    """All sections of one ``config/<experiment>.yaml``."""

    seed: int = Field(ge=0)
    allow: list[str] = []
    data: Data
    tokenizer: TokenizerSection
    stats: Stats
    model: Target
    init: str | dict[str, Any] | None = None
    optimizer: Target | None = None
    scheduler: Target | None = None
    optimizers: dict[str, dict[str, Any]] | None = None
    schedulers: dict[str, Target] | None = None
    dataloader: dict[str, dict[str, Any]]
    trainer: dict[str, Any]
    best_model_criterion: list[tuple[str, int, Literal["min", "max"]]] = Field(min_length=1)
    lm: LanguageModel | None = None
    decode: Decode
    score: Score
    parallel: Parallel
    execution: Execution

    @field_validator("trainer")
    @classmethod
    def _trainer(cls, section: dict) -> dict:
        known = TRAINER_KEYS | (parameters("lightning.pytorch.Trainer") or set(section))
        for key in section:
            if key not in known:
                raise ValueError(f"unknown key '{key}'{did_you_mean(key, known)}")
        epochs = section.get("max_epochs")
        if not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"max_epochs must be a whole number above 0, not {epochs!r}")
        return section

    @field_validator("dataloader")
    @classmethod
    def _dataloader(cls, section: dict) -> dict:
        for key in ("train", "valid"):
            if key not in section:
                raise ValueError(f"the part '{key}' is missing")
        for key in section:
            if key not in ("train", "valid"):
                raise ValueError(f"unknown key '{key}'{did_you_mean(key, ('train', 'valid'))}")
            if isinstance(section[key].get("sampler"), dict):
                try:
                    check_batch_type(section[key]["sampler"], f"{key}.sampler")
                except UserError as error:
                    raise ValueError(str(error)) from None
        return section

    @model_validator(mode="after")
    def _optimisers(self):
        if (self.optimizer is None) == (self.optimizers is None):
            raise ValueError("give either optimizer, or optimizers by name")
        if self.optimizers is not None and self.scheduler is not None:
            raise ValueError("with optimizers by name there are schedulers by name; set scheduler to null")
        if self.schedulers is not None and self.optimizers is None:
            raise ValueError("schedulers by name need optimizers by name")
        for name in self.schedulers or ():
            if name not in self.optimizers:
                raise ValueError(f"schedulers: '{name}' is no optimiser's name{did_you_mean(name, self.optimizers)}")
        return self

    @model_validator(mode="after")
    def _language_models(self):
        for name, settings in resolve_variants(self.decode.model_dump()).items():
            if settings.get("lm_weight") and self.lm is None:
                raise ValueError(f"decode.lm_weight of '{name}' needs a language model; add `- lm: small` to defaults")
            if settings.get("ngram_weight") and not settings.get("ngram"):
                raise ValueError(f"decode.ngram_weight of '{name}' needs decode.ngram, an ARPA file")
        return self

    @model_validator(mode="after")
    def _kept(self):
        kept = {monitor.replace("/", "."): k for monitor, k, _ in self.best_model_criterion}
        for name, variant in self.decode.variants.items():
            average = (variant or {}).get("average", self.decode.average)
            if str(average).startswith("epochs_"):
                first, last = map(int, str(average).removeprefix("epochs_").split("-"))
                if not first <= last <= self.trainer["max_epochs"]:
                    raise ValueError(
                        f"decode.average of '{name}': {average} are not among the {self.trainer['max_epochs']} epochs"
                    )
                continue
            monitor, _, best = str(average).rpartition(".ave_")
            if monitor in kept and int(best.removesuffix("best")) > kept[monitor]:
                raise ValueError(
                    f"decode.average of '{name}' wants {average}, but best_model_criterion keeps only {kept[monitor]}"
                )
            if monitor not in kept and monitor != "last":
                raise ValueError(
                    f"decode.average of '{name}' names '{monitor}', which best_model_criterion does not keep"
                    + did_you_mean(monitor, kept)
                )
        return self


# keys of `trainer:` that are this project's own; all others are lightning.Trainer's
TRAINER_KEYS = frozenset(
    {"max_epochs", "patience", "checkpoint_seconds", "checkpoint_steps", "log_seconds", "max_nonfinite"}
    | {"ema", "freeze", "compile", "gradient_checkpointing", "memory_probe", "peak_tflops"}
)


def validate(config: dict[str, Any], where: str = "config") -> dict[str, Any]:
    """*config* with the schema's defaults filled in.

    Raises:
        UserError: one line that names *where*, the key, and the mend.
    """
    config = dict(config)
    if isinstance(config.get("model"), dict):
        try:
            config["model"] = expand_task(config["model"], (config.get("data") or {}).get("sampling_rate"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    try:
        checked = Experiment.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    result = checked.model_dump(mode="json")
    for key in ("init", "optimizer", "optimizers", "schedulers", "lm"):
        # what is not there is in no slice, either
        if result[key] is None:
            del result[key]
    try:
        check_targets(result, allow=tuple(result["allow"]))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return result


def _explain(error: ValidationError) -> str:
    """The first of pydantic's errors in one line; how many more there are."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        text = f"unknown key '{path}'{did_you_mean(first['loc'][-1], _keys_at(first['loc'][:-1]))}"
    elif first["type"] == "missing":
        text = f"the key '{path}' is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        value = first.get("input")
        shown = f" (found {value!r})" if isinstance(value, (str, int, float, bool)) or value is None else ""
        text = f"{path}: {message}{shown}" if path else message
    more = len(errors) - 1
    return text + (f" (and {more} more)" if more else "")


def _keys_at(location: tuple) -> list[str]:
    model: Any = Experiment
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))
