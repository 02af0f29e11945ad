"""A packed model (``exp/<experiment>/pack``) as one object that transcribes audio."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet3.config.decoding import PACKED_LM, resolve_variants
from espnet3.errors import UserError, did_you_mean
from espnet3.inference.audio import audio_seconds, read_audio, read_blocks, to_model_rate
from espnet3.inference.decode import align_batch
from espnet3.inference.encoded import encode_batch
from espnet3.inference.longform import PAUSE, LongForm, Segment
from espnet3.inference.provider import load_model, pick_device
from espnet3.inference.search import Hypothesis, build_search
from espnet3.inference.timestamps import Word, frame_samples, frame_seconds, words_of
from espnet3.io import read_json
from espnet3.parallel import plan_batches
from espnet3.text.tokenizer import Tokenizer

# a pack may come from a stranger: it gets networks, and nothing that reads or writes files
PACKED_TARGETS = ("espnet3.models.", "torch.nn.")
# seconds, where a pack does not say how long the model's training utterances were
WINDOW = 20.0
# a recording so many windows long is decoded in windows
LONG = 1.5


@dataclass
class Result:
    """What was recognised.

    Attributes:
        tokens: the text's tokens.
        score: natural log.
        scores: each scorer's own, natural log.
        nbest: all hypotheses that were asked for, best first, this one included; empty within ``nbest`` itself.
        words: with their times in seconds, by CTC, where ``timestamps`` is set.
        segments: of a recording longer than a window, which has no tokens, scores and nbest of its own; its score is
            the sum of its windows'.
    """

    text: str
    tokens: list[str]
    score: float
    scores: dict[str, float]
    nbest: list[Result] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


def from_pretrained(
    path: str | os.PathLike,
    *,
    decoding: str | None = None,
    device: str = "auto",
    allow: Sequence[str] = (),
    window: float | None = None,
    overlap: float | None = None,
    pause: float = PAUSE,
    **settings: Any,
) -> Recogniser:
    """Load a folder that the pack stage made.

    Args:
        path: holds ``model.safetensors``, ``config.json``, ``tokens.txt`` and, where they are used, ``bpe.model``,
            ``lm.safetensors`` and n-gram models.
        decoding: which of the experiment's decodings; None takes the pack's own choice, the experiment's first.
        device: ``auto``, ``cpu`` or ``cuda``.
        allow: packages outside espnet3 and torch.nn whose code the configuration may name. Trust them first.
        window: a recording longer than this is decoded in windows, in seconds; 0 decodes it whole, None takes the
            longest utterance that the model was trained on.
        overlap, pause: of the windows, see :class:`espnet3.inference.longform.LongForm`.
        settings: keys of the ``decode:`` section to change, such as ``beam=10``, ``method="ctc_greedy"`` or
            ``timestamps=True``.

    Raises:
        UserError: a file is absent or damaged, a setting is unknown, or the configuration names code outside the
            allowed packages.
    """
    folder = Path(path)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: no packed model here (no config.json); make one with `snakemake exp/<experiment>/pack`"
        )
    config = read_json(folder / "config.json")
    try:
        model, tokenizer, rate = config["model"], config["tokenizer"]["type"], int(config["data"]["sampling_rate"])
        decode = config["decode"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: not the configuration of a packed model (no {error})") from None
    for section in (model, config.get("lm")):
        _check_targets(section, (*PACKED_TARGETS, *(f"{name}." for name in allow)), folder / "config.json")
    variants = resolve_variants(decode)
    name = decoding or config.get("decoding") or next(iter(variants))
    if name not in variants:
        raise UserError(f"{folder}: no decoding '{name}'{did_you_mean(name, variants)}")
    common = {k: v for k, v in decode.items() if k != "variants"}
    own = (decode.get("variants") or {}).get(name) or {}
    for key in settings:
        if key not in common and key not in ("nbest", "pre_beam_ratio", "timestamps"):
            raise UserError(f"from_pretrained: no decoding setting '{key}'{did_you_mean(key, common)}")
    resolved = resolve_variants({**common, **own, **settings, "variants": {name: {}}})[name]
    tokens = Tokenizer.load(folder, tokenizer)
    where = pick_device({"accelerator": device})
    network = load_model(model, len(tokens), folder / "model.safetensors", where, tuple(allow))
    lm = None
    if resolved.get("lm_weight") and (folder / PACKED_LM).exists():
        lm = load_model(config["lm"]["model"], len(tokens), folder / PACKED_LM, where, tuple(allow))
    if resolved.get("ngram") and (folder / Path(resolved["ngram"]).name).exists():
        resolved["ngram"] = str(folder / Path(resolved["ngram"]).name)
    if window is None:
        window = (config.get("durations") or {}).get("max", WINDOW) if _can_align(network) else 0.0
    return Recogniser(network, tokens, rate, resolved, where, window, overlap, pause, lm)


def _can_align(model: Any) -> bool:
    try:
        return frame_samples(model) > 0
    except UserError:
        return False


def _check_targets(node: Any, allowed: tuple[str, ...], where: Path) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not str(target).startswith(allowed):
            raise UserError(
                f"{where}: _target_ {target} is outside the packages that a packed model may use "
                f"({', '.join(name.rstrip('.') for name in allowed)}); if you trust its code, name it in allow="
            )
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _check_targets(child, allowed, where)


class Recogniser:
    """A model, its tokenizer and a search.

    Attributes:
        sampling_rate: Hz that the model wants; other audio is resampled.
        settings: the resolved decoding.
        window: what is longer is decoded in windows, in seconds; 0: never.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling_rate: int,
        settings: dict[str, Any],
        device: Any,
        window: float = 0.0,
        overlap: float | None = None,
        pause: float = PAUSE,
        lm: Any = None,
    ):
        self.model, self.tokenizer, self.sampling_rate = model, tokenizer, sampling_rate
        self.settings, self.device = settings, device
        self.window, self.overlap, self.pause = window, overlap, pause
        self.search = build_search(model, settings, lm=lm, tokens=tokenizer.tokens)
        self.timing = frame_seconds(model, sampling_rate, "timestamps") if settings.get("timestamps") else None

    def __call__(self, audio: str | os.PathLike | np.ndarray, sampling_rate: int | None = None) -> Result:
        """Transcribe one recording.

        Args:
            audio: a file, or samples of shape (T,) or (T, channels): floats in [-1, 1], or integers.
            sampling_rate: of the array, in Hz; None: the model's.

        Raises:
            UserError: the file cannot be read, or has no samples.
        """
        return self.batch([audio], sampling_rate)[0]

    def batch(self, audio: Sequence[str | os.PathLike | np.ndarray], sampling_rate: int | None = None) -> list[Result]:
        """Transcribe several recordings, in batches of ``batch_seconds`` of audio; the results in their order.

        A result does not depend on what it is decoded with. A recording longer than a window goes by itself.
        """
        results: dict[int, Result] = {}
        waveforms: dict[int, np.ndarray] = {}
        for i, item in enumerate(audio):
            if self.is_long(item, sampling_rate):
                results[i] = self._whole(self.stream(item, sampling_rate))
            else:
                waveforms[i] = self.read(item, sampling_rate)
        seconds = {i: w.size / self.sampling_rate for i, w in waveforms.items()}
        order = sorted(waveforms, key=lambda i: -seconds[i])
        budget = self.settings.get("batch_seconds", 60.0)
        for batch in plan_batches(order, batch_weight=budget, weights=seconds):
            found = self._decode([waveforms[i] for i in batch])
            results.update(zip(batch, found, strict=True))
        return [results[i] for i in range(len(audio))]

    def is_long(self, audio: str | os.PathLike | np.ndarray, sampling_rate: int | None = None) -> bool:
        """Whether a recording is decoded in windows: by half longer than one, since a window may end early."""
        if not self.window:
            return False
        if isinstance(audio, (str, os.PathLike)):
            return audio_seconds(audio) > LONG * self.window
        return len(audio) / (sampling_rate or self.sampling_rate) > LONG * self.window

    def stream(
        self, audio: str | os.PathLike | np.ndarray | Iterable[np.ndarray], sampling_rate: int | None = None
    ) -> Iterator[Segment]:
        """The segments of a recording of any length, as they are decoded; a file is read a part at a time.

        Args:
            audio: a file, samples, or an iterable of blocks of samples, float32 (any number,), at the model's rate.

        Raises:
            UserError: the model has no CTC layer, or the file cannot be read.
        """
        window = self.window or WINDOW
        batch = self.settings.get("batch_seconds", 60.0)
        long = LongForm(
            *(self.model, self.search, self.tokenizer, self.sampling_rate, self.device),
            *(window, self.overlap, self.pause, batch),
        )
        if isinstance(audio, (str, os.PathLike)):
            return long(read_blocks(audio, self.sampling_rate))
        return long([self.read(audio, sampling_rate)] if isinstance(audio, np.ndarray) else audio)

    def _whole(self, segments: Iterable[Segment]) -> Result:
        kept = list(segments)
        text = " ".join(segment.text for segment in kept)
        words = [word for segment in kept for word in segment.words]
        return Result(text, [], sum(segment.score for segment in kept), {}, words=words, segments=kept)

    @torch.inference_mode()
    def _decode(self, waveforms: Sequence[np.ndarray]) -> list[Result]:
        try:
            encoded, lengths = encode_batch(waveforms, self.model, self.device)
            found = self.search(encoded, lengths)
        except torch.OutOfMemoryError:
            if len(waveforms) == 1:
                raise
            half = (len(waveforms) + 1) // 2
            return self._decode(waveforms[:half]) + self._decode(waveforms[half:])
        results = [self._result(nbest) for nbest in found]
        if self.timing is not None:
            labels = [nbest[0].tokens for nbest in found]
            for result, row, alignment in zip(
                results, labels, align_batch(encoded, lengths, labels, self.model), strict=True
            ):
                result.words = words_of(row, alignment, self.tokenizer, self.timing)
        return results

    def read(self, audio: str | os.PathLike | np.ndarray, sampling_rate: int | None = None) -> np.ndarray:
        """A file or an array as float32 (T,) at the model's sampling rate."""
        if isinstance(audio, (str, os.PathLike)):
            return read_audio(audio, self.sampling_rate)
        return to_model_rate(audio, sampling_rate or self.sampling_rate, self.sampling_rate)

    def _result(self, nbest: list[Hypothesis]) -> Result:
        results = [
            Result(
                text=self.tokenizer.decode(h.tokens),
                tokens=[self.tokenizer.tokens[t] for t in h.tokens],
                score=h.score,
                scores={name: value for name, value in h.scores.items() if name != "length"},
            )
            for h in nbest
        ]
        best = results[0]
        return Result(best.text, best.tokens, best.score, best.scores, results)
