"""The search that a ``decode:`` section asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from espnet3.errors import UserError, did_you_mean
from espnet3.inference.search.beam import BeamSearch
from espnet3.inference.search.ctc_prefix import CTCPrefixScorer
from espnet3.inference.search.greedy import ctc_greedy
from espnet3.inference.search.hypothesis import Hypothesis
from espnet3.inference.search.scorer import DecoderScorer, Scorer

METHODS = ("joint", "attention", "ctc_beam", "ctc_greedy")

# (encoder output (B, T, D), lengths (B,)) -> the n best hypotheses of each utterance
Search = Callable[[Tensor, Tensor], list[list[Hypothesis]]]


def build_search(model: Any, settings: Mapping[str, Any]) -> Search:
    """A search over *model*'s encoder output.

    Args:
        model: ``ctc.log_softmax``, ``decoder`` (or None), ``ctc_weight``, ``blank`` and ``eos``, as of
            :class:`espnet3.models.asr.ASRModel`.
        settings: one decoding of :func:`espnet3.config.decoding.resolve_variants`.

    Raises:
        UserError: the method needs a part that the model lacks.
    """
    method = settings["method"]
    if method not in METHODS:
        raise UserError(f"decode.method: no '{method}'{did_you_mean(method, METHODS)}")
    weight = {"ctc_greedy": 1.0, "ctc_beam": 1.0, "attention": 0.0}.get(method, settings.get("ctc_weight", 0.3))
    if weight < 1 and model.decoder is None:
        raise UserError(f"decode.method: '{method}' needs an attention decoder, which this model lacks; use ctc_beam")
    if weight > 0 and model.ctc_weight == 0:
        raise UserError(f"decode.method: '{method}' needs CTC, which model.ctc_weight 0 left untrained; use attention")
    if method == "ctc_greedy":
        return lambda encoded, lengths: ctc_greedy(
            model.ctc.log_softmax(encoded), lengths, eos=model.eos, blank=model.blank
        )
    scorers: dict[str, Scorer] = {"ctc": CTCPrefixScorer(model.ctc.log_softmax, eos=model.eos, blank=model.blank)}
    if model.decoder is not None:
        scorers["att"] = DecoderScorer(model.decoder, sos=model.eos)
    return BeamSearch(
        scorers,
        {"ctc": weight, "att": 1.0 - weight},
        eos=model.eos,
        blank=model.blank,
        beam=settings["beam"],
        length_bonus=settings.get("length_bonus", 0.0),
        pre_beam_ratio=settings.get("pre_beam_ratio", 1.5),
        maxlenratio=settings.get("maxlenratio", 0.0),
        minlenratio=settings.get("minlenratio", 0.0),
        nbest=settings.get("nbest", 1),
    )
