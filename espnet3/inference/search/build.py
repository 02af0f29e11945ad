"""The search that a ``decode:`` section asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from espnet3.errors import UserError, did_you_mean
from espnet3.inference.scorers.base import Scorer
from espnet3.inference.scorers.cached import DecoderScorer
from espnet3.inference.scorers.espnet2 import espnet2_scorer, is_espnet2_decoder
from espnet3.inference.scorers.ngram import NgramScorer
from espnet3.inference.scorers.own import lm_scorer, own_scorer
from espnet3.inference.search.beam import BeamSearch
from espnet3.inference.search.ctc_prefix import CTCPrefixScorer
from espnet3.inference.search.greedy import ctc_greedy
from espnet3.inference.search.hypothesis import Hypothesis
from espnet3.inference.search.transducer import TransducerBeam, TransducerGreedy
from espnet3.models.decoder import TransformerDecoder

METHODS = ("joint", "attention", "ctc_beam", "ctc_greedy", "transducer_beam", "transducer_greedy")

# (encoder output (B, T, D), lengths (B,)) -> the n best hypotheses of each utterance
Search = Callable[[Tensor, Tensor], list[list[Hypothesis]]]


def build_search(
    model: Any, settings: Mapping[str, Any], lm: Any = None, tokens: Sequence[str] | None = None
) -> Search:
    """A search over *model*'s encoder output.

    Args:
        model: ``ctc.log_softmax``, ``decoder`` (or None), ``ctc_weight``, ``blank`` and ``eos``, as of
            :class:`espnet3.models.asr.ASRModel`.
        settings: one decoding of :func:`espnet3.config.decoding.resolve_variants`.
        lm: the language model that ``lm_weight`` asks for, a :class:`espnet3.models.lm.TransformerLM`.
        tokens: the labels, for ``ngram``.

    Raises:
        UserError: the method needs a part that the model lacks, or a language model is not there.
    """
    method = settings["method"]
    if method not in METHODS:
        raise UserError(f"decode.method: no '{method}'{did_you_mean(method, METHODS)}")
    if method.startswith("transducer"):
        return _transducer(model, settings)
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
        scorers["att"] = attention_scorer(model.decoder, sos=model.eos)
    weights = {"ctc": weight, "att": 1.0 - weight}
    if settings.get("lm_weight"):
        if lm is None:
            raise UserError("decode.lm_weight: the language model is not here; set lm_weight to 0 to decode without it")
        scorers["lm"], weights["lm"] = lm_scorer(lm), settings["lm_weight"]
    if settings.get("ngram_weight"):
        if tokens is None or not settings.get("ngram"):
            raise UserError("decode.ngram_weight: needs decode.ngram, an ARPA file; set it to 0 to decode without it")
        scorers["ngram"], weights["ngram"] = NgramScorer(settings["ngram"], tokens), settings["ngram_weight"]
    return BeamSearch(
        scorers,
        weights,
        eos=model.eos,
        blank=model.blank,
        beam=settings["beam"],
        length_bonus=settings.get("length_bonus", 0.0),
        # without the decoder nothing is fit to choose what CTC may see
        pre_beam_ratio=settings.get("pre_beam_ratio", 1.5) if weight < 1 else 0.0,
        maxlenratio=settings.get("maxlenratio", 0.0),
        minlenratio=settings.get("minlenratio", 0.0),
        nbest=settings.get("nbest", 1),
        slots=settings.get("slots", 0),
    )


def _transducer(model: Any, settings: Mapping[str, Any]) -> Search:
    if not hasattr(model, "joiner"):
        raise UserError(f"decode.method: '{settings['method']}' needs a transducer, which this model is not; use joint")
    if settings["method"] == "transducer_greedy":
        return TransducerGreedy(model)
    return TransducerBeam(model, settings["beam"], settings.get("nbest", 1), settings.get("length_bonus", 0.0))


def attention_scorer(decoder: Any, sos: int) -> Scorer:
    """The scorer of a decoder: this package's, ESPnet2's, or one that keeps a cache of its own.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(decoder, TransformerDecoder):
        return own_scorer(decoder, sos)
    if is_espnet2_decoder(decoder):
        return espnet2_scorer(decoder, sos)
    if hasattr(decoder, "init_cache"):
        return DecoderScorer(decoder, sos)
    raise UserError(f"decoder {type(decoder).__name__}: no way to score with it; give it init_cache and step")
