"""The decodings of an experiment: its ``decode:`` section, resolved."""

from __future__ import annotations

from typing import Any

from espnet3.errors import UserError, did_you_mean

PACKED_LM = "lm.safetensors"
"""The language model in a pack."""
# an edit of a key that a method does not read must not decode again
COMMON_KEYS = ("method", "average", "shards", "batch_seconds", "timestamps")
BEAM_KEYS = (
    "beam",
    "length_bonus",
    "maxlenratio",
    "minlenratio",
    "nbest",
    "slots",
    "lm_weight",
    "ngram",
    "ngram_weight",
)
# what is off says nothing: an experiment without a language model reads none of its keys
OPTIONAL = {"slots": (), "lm_weight": (), "ngram_weight": (), "ngram": ("ngram_weight",)}
METHOD_KEYS: dict[str, tuple[str, ...]] = {
    "ctc_greedy": COMMON_KEYS,
    "ctc_beam": (*COMMON_KEYS, *BEAM_KEYS),
    "attention": (*COMMON_KEYS, *BEAM_KEYS),
    "joint": (*COMMON_KEYS, *BEAM_KEYS, "ctc_weight", "pre_beam_ratio"),
    "transducer_greedy": COMMON_KEYS,
    "transducer_beam": (*COMMON_KEYS, "beam", "length_bonus", "nbest"),
}


def resolve_variants(section: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``{name: settings}`` of each decoding: the section's keys, the variant's own above them, and of those only what
    the method reads.

    Raises:
        UserError: an unknown method.
    """
    common = {key: value for key, value in section.items() if key != "variants"}
    resolved = {}
    for name, own in (section.get("variants") or {"default": {}}).items():
        settings = {**common, **(own or {})}
        method = settings.get("method")
        if method not in METHOD_KEYS:
            raise UserError(f"decode: '{name}' has no method '{method}'{did_you_mean(method, METHOD_KEYS)}")
        off = {key for key, needs in OPTIONAL.items() if not all(settings.get(k) for k in (key, *needs))}
        resolved[name] = {key: settings[key] for key in METHOD_KEYS[method] if key in settings and key not in off}
    return resolved
