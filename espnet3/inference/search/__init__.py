"""Searches over labels, batched over utterances: an utterance's result does not depend on its batch."""

from espnet3.inference.scorers.base import Scorer
from espnet3.inference.scorers.cached import DecoderScorer
from espnet3.inference.search.beam import BeamSearch
from espnet3.inference.search.build import METHODS, Search, build_search
from espnet3.inference.search.ctc_prefix import CTCPrefixScorer
from espnet3.inference.search.greedy import ctc_greedy
from espnet3.inference.search.hypothesis import Hypothesis

__all__ = [
    "METHODS",
    "BeamSearch",
    "CTCPrefixScorer",
    "DecoderScorer",
    "Hypothesis",
    "Scorer",
    "Search",
    "build_search",
    "ctc_greedy",
]
