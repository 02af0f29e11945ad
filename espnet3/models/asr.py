"""Joint CTC/attention recogniser (arXiv 1609.06773) with ESPnet's model contract."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet3.errors import UserError
from espnet3.models.cmvn import GlobalCMVN
from espnet3.models.ctc import CTC, consistency_loss, ctc_loss
from espnet3.models.layers import length_mask


class ASRModel(nn.Module):
    """Frontend, normalisation, SpecAugment, encoder, and CTC and/or attention decoder.

    Symbol 0 is the blank, the last one is <sos/eos>, and -1 pads transcripts.

    Args:
        vocab_size: number of symbols.
        frontend: ``(speech, lengths) -> (features, lengths)`` with an ``output_size``.
        encoder: ``(features, lengths) -> (memory, lengths)`` with ``input_size`` and ``output_size``.
        decoder: None trains CTC alone.
        cmvn: ``cmvn.npz`` of the stats stage; None leaves the buffers to a checkpoint.
        ctc_weight: part of the CTC loss in the sum, 0 to 1.
        label_smoothing: mass that the attention loss's target spreads over the vocabulary.
        intermediate: blocks of the encoder, counted from 1, that get a CTC loss too (intermediate CTC, arXiv 2102.03216).
        intermediate_weight: their part of the CTC loss, 0 to 1.
        self_conditioning: feed those blocks' CTC posteriors into the next block (arXiv 2104.02724).
        consistency_weight: above 0, each utterance is encoded under two draws of SpecAugment, and their CTC posteriors are
            drawn together (CR-CTC, arXiv 2410.05101, which weighs it 0.2 and makes 2.5 times as many time masks). A batch
            costs twice the memory and time.

    Raises:
        UserError: sizes of the parts do not fit.
    """

    other_losses = False
    """Whether a subclass has a loss beside CTC's without a decoder."""

    def __init__(
        self,
        vocab_size: int,
        frontend: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module | None = None,
        specaug: nn.Module | None = None,
        cmvn: str | os.PathLike | None = None,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        intermediate: Sequence[int] = (),
        intermediate_weight: float = 0.5,
        self_conditioning: bool = False,
        consistency_weight: float = 0.0,
    ):
        super().__init__()
        if not 0.0 <= ctc_weight <= 1.0:
            raise UserError(f"model.ctc_weight: {ctc_weight} is not between 0 and 1")
        if decoder is None and ctc_weight < 1.0 and not self.other_losses:
            raise UserError(f"model.ctc_weight: {ctc_weight} needs a decoder; add model.decoder or set 1.0")
        if consistency_weight and (specaug is None or ctc_weight == 0):
            raise UserError("model.consistency_weight: needs model.specaug, and a ctc_weight above 0")
        for block in intermediate:
            if not 1 <= block < len(encoder.blocks):
                raise UserError(
                    f"model.intermediate: block {block} is not before the last of the encoder's {len(encoder.blocks)}"
                )
        if frontend.output_size != encoder.input_size:
            raise UserError(
                f"model.encoder.input_size: {encoder.input_size} does not fit the frontend's {frontend.output_size}"
            )
        self.vocab_size = vocab_size
        self.blank, self.sos, self.eos, self.ignore_id = 0, vocab_size - 1, vocab_size - 1, -1
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.intermediate = tuple(intermediate)
        self.intermediate_weight = intermediate_weight
        self.consistency_weight = consistency_weight
        self.frontend = frontend
        self.cmvn = GlobalCMVN(frontend.output_size, cmvn)
        self.specaug = specaug
        self.encoder = encoder
        self.ctc = CTC(encoder.output_size, vocab_size)
        self.condition = nn.Linear(vocab_size, encoder.output_size) if self_conditioning and intermediate else None
        self.decoder = decoder
        if decoder is not None:
            if decoder.memory_size != encoder.output_size:
                raise UserError(
                    f"model.decoder: its memory_size {decoder.memory_size} is not the encoder's {encoder.output_size}"
                )
            if decoder.vocab_size is None:
                decoder.set_vocabulary(vocab_size)

    def collect_feats(self, speech: Tensor, speech_lengths: Tensor, **_) -> dict[str, Tensor]:
        """Features before normalisation: ``feats`` (B, T', F) and ``feats_lengths`` (B,)."""
        feats, lengths = self.frontend(speech, speech_lengths)
        return {"feats": feats, "feats_lengths": lengths}

    def encode(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) in [-1, 1], lengths in samples -> memory (B, T', D), its lengths (B,)."""
        feats, lengths = self.frontend(speech, speech_lengths)
        return self._encode(self.cmvn(feats), lengths, [])

    def _encode(self, feats: Tensor, lengths: Tensor, seen: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised features -> memory, lengths; *seen* gets the CTC log-probabilities of the intermediate blocks."""
        if self.specaug is not None:
            feats = self.specaug(feats, lengths)
        if not self.intermediate or not (self.training or self.condition is not None):
            return self.encoder(feats, lengths)

        def look(x: Tensor) -> Tensor:
            log_probs = self.ctc.log_softmax(x)
            seen.append(log_probs)
            return x if self.condition is None else x + self.condition(log_probs.exp().to(x.dtype))

        return self.encoder(feats, lengths, dict.fromkeys(self.intermediate, look))

    def output_lengths(self, speech_lengths: Tensor) -> Tensor:
        """Encoder frames of utterances of so many samples: what CTC has to fit its labels into."""
        return self.encoder.lengths(self.frontend.frames(speech_lengths))

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **_
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss (a mean over utterances of sums over symbols), detached statistics, and the batch size as weight.

        speech (B, T), speech_lengths (B,), text (B, L) padded with -1, text_lengths (B,).
        """
        feats, lengths = self.frontend(speech, speech_lengths)
        feats = self.cmvn(feats)
        if self.consistency_weight and self.training:
            feats, lengths, text, text_lengths = (torch.cat([x, x]) for x in (feats, lengths, text, text_lengths))
        seen: list[Tensor] = []
        memory, lengths = self._encode(feats, lengths, seen)
        stats: dict[str, Tensor] = {}
        loss = self._losses(memory, lengths, text, text_lengths, stats)
        if self.ctc_weight > 0:
            loss = loss + self.ctc_weight * self._ctc_loss(memory, lengths, text, text_lengths, seen, stats)
        stats["loss"] = loss.detach()
        return loss, stats, torch.tensor(speech.size(0), device=speech.device)

    def _ctc_loss(self, memory, lengths, text, text_lengths, seen: list[Tensor], stats: dict[str, Tensor]) -> Tensor:
        """CTC, intermediate CTC and consistency, means over utterances; the parts go into *stats*."""
        log_probs = self.ctc.log_softmax(memory)
        loss = ctc_loss(log_probs, lengths, text, text_lengths).mean()
        stats["loss_ctc"] = loss.detach()
        if seen and self.training:
            between = torch.stack([ctc_loss(x, lengths, text, text_lengths).mean() for x in seen]).mean()
            stats["loss_interctc"] = between.detach()
            loss = torch.lerp(loss, between, self.intermediate_weight)
        if self.consistency_weight and self.training:
            consistency = consistency_loss(log_probs, lengths).mean()
            stats["loss_cr"] = consistency.detach()
            loss = loss + self.consistency_weight * consistency
        return loss

    def _losses(self, memory, lengths, text, text_lengths, stats: dict[str, Tensor]) -> Tensor:
        """The weighted losses beside CTC's."""
        if self.ctc_weight == 1:
            return memory.new_zeros(())
        loss, stats["acc"] = self._attention_loss(memory, lengths, text, text_lengths)
        stats["loss_att"] = loss.detach()
        return (1 - self.ctc_weight) * loss

    def _attention_loss(self, memory: Tensor, lengths: Tensor, text: Tensor, text_lengths: Tensor):
        inside = length_mask(text_lengths, text.size(1))
        tokens = F.pad(text.masked_fill(~inside, self.eos), (1, 0), value=self.sos)
        target = F.pad(text.masked_fill(~inside, self.ignore_id), (0, 1), value=self.ignore_id)
        target = target.scatter(1, text_lengths.unsqueeze(1), self.eos)
        logits = self.decoder(tokens, memory, lengths).float().flatten(0, 1)
        target = target.flatten()
        loss = F.cross_entropy(
            logits, target, ignore_index=self.ignore_id, label_smoothing=self.label_smoothing, reduction="sum"
        )
        scored = target != self.ignore_id
        correct = (logits.detach().argmax(-1) == target) & scored
        return loss / memory.size(0), correct.sum() / scored.sum()
