"""Speech models of Hugging Face's `transformers` (extra ``transformers``), with this package's contract around them.

The network is described by its configuration alone; ``load_pretrained`` fetches weights where a training begins from a
published model. So a model that was trained here is rebuilt and filled without them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError
from espnet3.models.asr import ASRModel
from espnet3.models.ctc import ctc_loss
from espnet3.models.frontend import Fbank
from espnet3.models.layers import length_mask

log = logging.getLogger(__name__)


class _HuggingFaceModel(ASRModel):
    """What both kinds share. Symbol 0 is the blank or the padding, the last one is <sos/eos>.

    Args:
        model: a folder with ``config.json`` (and weights), or a name on the hub; None: `config` alone, random weights.
        config: its configuration: ``model_type`` and whatever differs from that type's defaults; above `model`'s own.
        vocab_size: number of tokens of this experiment's tokenizer.
        cmvn: not used; these models normalise by themselves.
        sampling_rate: Hz of the data; published models have heard 16 kHz.

    Raises:
        UserError: `transformers` is not installed, or does not know the model.
    """

    auto = ""

    def __init__(
        self,
        vocab_size: int,
        model: str | None = None,
        config: Mapping[str, Any] | None = None,
        cmvn: str | os.PathLike | None = None,
        label_smoothing: float = 0.0,
        sampling_rate: int = 16000,
    ):
        nn.Module.__init__(self)
        self.vocab_size = vocab_size
        self.blank, self.sos, self.eos, self.ignore_id = 0, vocab_size - 1, vocab_size - 1, -1
        self.label_smoothing = label_smoothing
        self.sampling_rate = sampling_rate
        self.pretrained = model
        transformers = _transformers()
        ids = {
            "pad_token_id": 0,
            "bos_token_id": self.sos,
            "eos_token_id": self.eos,
            "decoder_start_token_id": self.sos,
        }
        settings = {**(config or {}), "vocab_size": vocab_size, **ids}
        try:
            if config and "model_type" in config:
                kind = settings.pop("model_type")
                self.config = transformers.AutoConfig.for_model(kind, **settings)
            elif model:
                self.config = transformers.AutoConfig.from_pretrained(model, **settings)
            else:
                raise UserError("model: give model (a folder, or a name on the hub) or config with model_type")
            for name in ("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids"):
                # ids of another vocabulary
                if getattr(self.config, name, None):
                    setattr(self.config, name, None)
            self.model = getattr(transformers, self.auto).from_config(self.config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"model: {self.auto} refuses it: {_line(error)}") from None

    def load_pretrained(self) -> dict[str, list[str]]:
        """Take the weights of ``model``: those that fit; says which did not (the output layer of another vocabulary, say).

        Raises:
            UserError: they cannot be read, or fetched.
        """
        if not self.pretrained:
            return {}
        try:
            theirs = getattr(_transformers(), self.auto).from_pretrained(self.pretrained).state_dict()
        except (OSError, ValueError) as error:
            raise UserError(f"model.model: {_line(error)}") from None
        ours = self.model.state_dict()
        fits = {n: v for n, v in theirs.items() if n in ours and ours[n].shape == v.shape}
        self.model.load_state_dict(fits, strict=False)
        other = sorted(ours.keys() - fits.keys())
        shown = f"; begun afresh: {', '.join(other[:5])}{', ...' if len(other) > 5 else ''}" if other else ""
        log.info("%s: %d of %d tensors taken%s", self.pretrained, len(fits), len(ours), shown)
        return {"matched": sorted(fits), "missing": other}

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_: Any) -> dict[str, Tensor]:
        """The model's input."""
        feats, lengths = self._features(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def _features(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) in [-1, 1], lengths in samples -> memory (B, T', D), its lengths (B,)."""
        return self._memory(*self._features(speech, speech_lengths))

    def _memory(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class HuggingFaceCTC(_HuggingFaceModel):
    """A CTC model on waveforms: ``Wav2Vec2ForCTC``, ``HubertForCTC``, ``WavLMForCTC`` and their like (``AutoModelForCTC``)."""

    auto = "AutoModelForCTC"
    ctc_weight = 1.0
    decoder = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "lm_head") or not hasattr(self.model, "_get_feat_extract_output_lengths"):
            raise UserError(f"model: {type(self.model).__name__} is not of wav2vec 2.0's kind; train another one")
        self.ctc = _Head(self.model.lm_head)

    def _features(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        # mean 0 and variance 1, as Wav2Vec2FeatureExtractor makes them
        inside = length_mask(lengths, speech.size(1))
        number = lengths.unsqueeze(1)
        mean = (speech * inside).sum(1, keepdim=True) / number
        centred = (speech - mean) * inside
        return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / number + 1e-7), lengths

    def _memory(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.output_lengths(lengths)
        if not self.training and len(feats) > 1 and getattr(self.config, "feat_extract_norm", "layer") == "group":
            # its first layer normalises over time, padding included
            alone = [self._memory(f[None, : int(n)], n[None])[0][0] for f, n in zip(feats, lengths, strict=True)]
            return nn.utils.rnn.pad_sequence(alone, batch_first=True), frames
        mask = length_mask(lengths, feats.size(1)).long()
        memory = self.model.base_model(feats, attention_mask=mask).last_hidden_state
        return memory * length_mask(frames, memory.size(1)).unsqueeze(-1), frames

    def output_lengths(self, speech_lengths: Tensor) -> Tensor:
        """Encoder frames of utterances of so many samples."""
        return self.model._get_feat_extract_output_lengths(speech_lengths).long()

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss (a mean over utterances of sums over symbols), detached statistics, and the batch size as weight."""
        memory, lengths = self.encode(speech, speech_lengths)
        dropped = self.model.dropout(memory) if hasattr(self.model, "dropout") else memory
        loss = ctc_loss(self.ctc.log_softmax(dropped), lengths, text, text_lengths).mean()
        return loss, {"loss": loss.detach()}, torch.tensor(speech.size(0), device=speech.device)


class HuggingFaceSeq2Seq(_HuggingFaceModel):
    """An encoder and a decoder on filterbanks: ``WhisperForConditionalGeneration``, ``Speech2TextForConditionalGeneration``."""

    auto = "AutoModelForSpeechSeq2Seq"
    ctc_weight = 0.0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        kind = self.config.model_type
        if kind == "whisper":
            self.frontend: nn.Module = WhisperFeatures(self.config.num_mel_bins, self.sampling_rate)
        elif kind == "speech_to_text":
            bands = self.config.input_feat_per_channel
            self.frontend = Fbank(self.sampling_rate, n_mels=bands)
        else:
            raise UserError(f"model: '{kind}' is none of whisper, speech_to_text")
        self.decoder = _Decoder(self.model)
        # the search takes hold of it, and never asks it with CTC's weight 0
        self.ctc = _Head(nn.Identity())

    def _features(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.model_type == "whisper":
            # the encoder takes one length only
            samples = 2 * self.config.max_source_positions * self.frontend.hop
            if int(lengths.max()) > samples:
                seconds = samples / self.sampling_rate
                raise UserError(f"model: this Whisper hears {seconds:g} s at most; lower data.max_duration")
            return self.frontend(F.pad(speech[:, :samples], (0, max(0, samples - speech.size(1))))), lengths
        feats, frames = self.frontend(speech, lengths)
        inside = length_mask(frames, feats.size(1)).unsqueeze(-1)
        number = frames[:, None, None]
        centred = (feats - (feats * inside).sum(1, keepdim=True) / number) * inside
        return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / number + 1e-10), frames

    def _memory(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.model.get_encoder()
        if self.config.model_type == "whisper":
            memory = encoder(feats).last_hidden_state
            return memory, torch.full_like(lengths, memory.size(1))
        mask = length_mask(lengths, feats.size(1)).long()
        memory = encoder(feats, attention_mask=mask).last_hidden_state
        frames = self.model._get_feat_extract_output_lengths(lengths).long()
        return memory * length_mask(frames, memory.size(1)).unsqueeze(-1), frames

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **_: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss (a mean over utterances of sums over symbols), detached statistics, and the batch size as weight."""
        memory, lengths = self.encode(speech, speech_lengths)
        loss, accuracy = self._attention_loss(memory, lengths, text, text_lengths)
        stats = {"loss": loss.detach(), "acc": accuracy}
        return loss, stats, torch.tensor(speech.size(0), device=speech.device)


class WhisperFeatures(nn.Module):
    """Whisper's log-mel features (arXiv 2212.04356): (B, samples) -> (B, n_mels, samples / hop)."""

    def __init__(self, n_mels: int, sampling_rate: int, n_fft: int = 400, hop: int = 160):
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.n_fft, self.hop = n_fft, hop
        bank = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sampling_rate / 2, sampling_rate, "slaney", "slaney")
        self.register_buffer("filters", torch.from_numpy(bank).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    @torch.no_grad()
    def forward(self, speech: Tensor) -> Tensor:
        with torch.autocast(speech.device.type, enabled=False):
            spectrum = torch.stft(speech.float(), self.n_fft, self.hop, window=self.window, return_complex=True)
            power = spectrum[..., :-1].abs().square()
            feats = (self.filters.T @ power).clamp(min=1e-10).log10()
            return (torch.maximum(feats, feats.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class _Head:
    """The output layer as the search's CTC."""

    def __init__(self, output: nn.Module):
        self.output = output

    def log_softmax(self, encoded: Tensor) -> Tensor:
        """(B, T, D) -> log-probabilities (B, T, V), float32."""
        return self.output(encoded).float().log_softmax(-1)


@dataclass
class _Cache:
    """The decoder's keys and values of N hypotheses, with the memory (N, T, D) and mask (N, T) of each one's utterance.

    Hypotheses lie grouped by utterance, equally many for each of the *utterances*.
    """

    past: Any
    memory: Tensor
    mask: Tensor
    utterances: int

    def reorder(self, index: Tensor) -> _Cache:
        """Row i continues what row ``index[i]`` was."""
        self.past.reorder_cache(index)
        return _Cache(self.past, self.memory[index], self.mask[index], self.utterances)

    def select(self, utterances: Tensor) -> _Cache:
        """Some utterances only, each with all its hypotheses."""
        width = self.memory.size(0) // self.utterances
        rows = utterances.unsqueeze(1) * width + torch.arange(width, device=utterances.device)
        kept = self.reorder(rows.flatten())
        return _Cache(kept.past, kept.memory, kept.mask, utterances.numel())


class _Decoder:
    """The decoder as training and the search call it; no module, so that its tensors have one name."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, tokens: Tensor, memory: Tensor, memory_lens: Tensor) -> Tensor:
        """Tokens (B, L), which begin with <sos>, memory (B, T, D), its lengths -> logits of the next token (B, L, V)."""
        return self._run(tokens, memory, length_mask(memory_lens, memory.size(1)), None)[0]

    def _run(self, tokens: Tensor, memory: Tensor, mask: Tensor, past: Any) -> tuple[Tensor, Any]:
        masked = {} if self.model.config.model_type == "whisper" else {"encoder_attention_mask": mask.long()}
        found = self.model.get_decoder()(
            input_ids=tokens, encoder_hidden_states=memory, past_key_values=past, use_cache=past is not None, **masked
        )
        return self.model.get_output_embeddings()(found.last_hidden_state), found.past_key_values

    def init_cache(self, memory: Tensor, memory_lens: Tensor) -> _Cache:
        """One empty hypothesis for each utterance."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return _Cache(past, memory, length_mask(memory_lens, memory.size(1)), memory.size(0))

    def step(self, prev_tokens: Tensor, cache: _Cache) -> tuple[Tensor, _Cache]:
        """Log-probabilities (N, V) of the symbol after `prev_tokens` (N,), and the cache that has seen those."""
        logits, past = self._run(prev_tokens.unsqueeze(1), cache.memory, cache.mask, cache.past)
        return logits[:, -1].float().log_softmax(-1), _Cache(past, cache.memory, cache.mask, cache.utterances)


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise UserError("model: Hugging Face models need 'transformers': pip install transformers==5.23.0") from None
    return transformers


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
