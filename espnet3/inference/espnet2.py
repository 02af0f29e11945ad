"""ESPnet2's recognisers (extra ``espnet``) with this package's search: what ``Speech2Text`` gives, in less time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from espnet3.inference.espnet2_encoder import encode_alone, encode_together, is_known
from espnet3.inference.search.beam import BeamSearch
from espnet3.inference.search.build import attention_scorer
from espnet3.inference.search.ctc_prefix import CTCPrefixScorer
from espnet3.inference.search.hypothesis import Hypothesis


@dataclass
class ESPnet2Recogniser:
    """A built ESPnet2 recogniser (``espnet2.tasks.asr.ASRTask.build_model_from_file``), decoded here.

    The model computes as it was built: the decoder's weights are used in place, the encoder's too where it is a Conformer of
    the usual kind; any other encoder runs as it is, one utterance at a time.

    Args:
        model: an ``ESPnetASRModel`` in evaluation mode.
        beam, ctc_weight, nbest, slots: as of :class:`espnet3.inference.search.BeamSearch`; CTC's weight, and the decoder's is
            one minus that.
        length_bonus: ESPnet2's ``penalty``.
        maxlenratio, minlenratio: ESPnet2's own.
    """

    model: nn.Module
    beam: int = 10
    ctc_weight: float = 0.3
    nbest: int = 1
    slots: int = 16
    length_bonus: float = 0.0
    maxlenratio: float = 0.0
    minlenratio: float = 0.0
    search: Callable[..., list[list[Hypothesis]]] = field(init=False, repr=False)

    def __post_init__(self):
        model = self.model.eval()
        self._encode = encode_together if is_known(model) else None
        scorers = {"ctc": CTCPrefixScorer(model.ctc.log_softmax, eos=model.eos, blank=model.blank_id)}
        if self.ctc_weight < 1:
            scorers["att"] = attention_scorer(model.decoder, sos=model.sos)
        self.search = BeamSearch(
            scorers,
            {"ctc": self.ctc_weight, "att": 1.0 - self.ctc_weight},
            eos=model.eos,
            blank=model.blank_id,
            beam=self.beam,
            nbest=self.nbest,
            length_bonus=self.length_bonus,
            maxlenratio=self.maxlenratio,
            minlenratio=self.minlenratio,
            pre_beam_ratio=1.5 if self.ctc_weight < 1 else 0.0,
            slots=self.slots,
        )

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[Tensor], batch: int = 16) -> tuple[list[Tensor], Tensor]:
        """Encoder output (T, D) of each waveform (samples,) and the lengths (B,); *batch* utterances of like length at once."""
        if self._encode is None or batch == 1:
            encoded = encode_alone(self.model, waveforms)
        else:
            order = sorted(range(len(waveforms)), key=lambda i: -waveforms[i].numel())
            encoded = [Tensor()] * len(waveforms)
            for start in range(0, len(order), batch):
                part = order[start : start + batch]
                for i, memory in zip(part, self._encode(self.model, [waveforms[i] for i in part]), strict=True):
                    encoded[i] = memory
        return encoded, torch.tensor([memory.size(0) for memory in encoded])

    def __call__(self, waveforms: Sequence[Tensor], batch: int = 16) -> list[list[Hypothesis]]:
        """The n best hypotheses of each waveform (samples,) at the model's sampling rate."""
        encoded, lengths = self.encode(waveforms, batch)
        return self.search(encoded, lengths)

    def text(self, labels: Sequence[int]) -> str:
        """Labels as text: characters, or SentencePiece's pieces joined."""
        tokens = [self.model.token_list[label] for label in labels]
        if any("\u2581" in token for token in self.model.token_list):
            return "".join(tokens).replace("\u2581", " ").strip()
        return "".join(" " if token == "<space>" else token for token in tokens)
