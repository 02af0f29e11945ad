"""Hugging Face CTC models (extra ``transformers``) for the searches of this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from espnet3.errors import UserError

# sos/eos, which such a model lacks, is one label more, that no frame ever spells
_NEVER = -1e4


class HuggingFaceCTC(nn.Module):
    """A ``transformers`` model for CTC (Wav2Vec2, HuBERT, WavLM, ...) with the parts that a search asks for.

    ``build_search(HuggingFaceCTC(...), {"method": "ctc_beam", "beam": 10})`` decodes its ``encode(speech, lengths)``; a
    language model joins as with any other model. Where the feature encoder's norm is over time (``feat_extract_norm:
    group``), padding would change the features, and utterances are encoded one at a time.

    Args:
        model: of ``AutoModelForCTC``.
        labels: the tokenizer's labels, in the order of their ids.
        normalize: bring each waveform to zero mean and unit variance, as the model's feature extractor says.
    """

    decoder = None
    ctc_weight = 1.0

    def __init__(self, model: nn.Module, labels: Sequence[str], normalize: bool = True):
        super().__init__()
        self.model, self.normalize = model, normalize
        self.blank = int(model.config.pad_token_id)
        self.vocab_size = int(model.config.vocab_size)
        self.sos = self.eos = self.vocab_size
        self.tokens = [*labels, "<sos/eos>"]
        self.ctc = _Posteriors()
        if len(labels) != self.vocab_size:
            raise UserError(f"HuggingFaceCTC: {len(labels)} labels for a model of {self.vocab_size}")

    @classmethod
    def load(cls, path: str | os.PathLike, **options: Any) -> HuggingFaceCTC:
        """From a folder or the hub; *options* are those of ``AutoModelForCTC.from_pretrained``.

        Raises:
            UserError: ``transformers`` is not installed, or the model is not one for CTC.
        """
        try:
            from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer
        except ImportError:
            raise UserError(
                "Hugging Face models need the extra transformers: pip install 'espnet3[transformers]'"
            ) from None
        try:
            model = AutoModelForCTC.from_pretrained(path, **options)
            vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
            extractor = AutoFeatureExtractor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a Hugging Face model for CTC ({str(error).splitlines()[0]})") from None
        names = {number: label for label, number in vocabulary.items()}
        labels = [names.get(number, f"<{number}>") for number in range(model.config.vocab_size)]
        return cls(model.eval(), labels, bool(getattr(extractor, "do_normalize", True)))

    @torch.inference_mode()
    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) at the model's rate, lengths in samples -> logits (B, T', V), lengths (B,)."""
        waveforms = [self._normalized(row[: int(n)]) for row, n in zip(speech, speech_lengths, strict=True)]
        lengths = self.model._get_feat_extract_output_lengths(speech_lengths)
        if getattr(self.model.config, "feat_extract_norm", "group") == "group":
            logits = pad_sequence([self.model(w[None]).logits[0] for w in waveforms], batch_first=True)
        else:
            padded = pad_sequence(waveforms, batch_first=True)
            mask = torch.arange(padded.size(1), device=padded.device) < speech_lengths[:, None]
            logits = self.model(padded, attention_mask=mask.long()).logits
        return logits, lengths

    def _normalized(self, waveform: Tensor) -> Tensor:
        if not self.normalize:
            return waveform
        return (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()

    def text(self, ids: Sequence[int]) -> str:
        """Labels as text; ``|`` is the space between words."""
        return " ".join("".join(self.tokens[i] for i in ids).replace("|", " ").split())


class _Posteriors:
    """What a CTC layer gives, of logits that are there already."""

    def log_softmax(self, logits: Tensor) -> Tensor:
        return F.pad(logits.float().log_softmax(-1), (0, 1), value=_NEVER)
