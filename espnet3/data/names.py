"""Which utterance ids and transcripts are fit for a manifest, and file names made of ids."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any
from urllib.parse import quote

# a file name may have 255 bytes on the usual file systems; a suffix and a shard's number follow the id
MAX_ID_BYTES = 200


def id_problem(uid: Any) -> str | None:
    """Why *uid* is unfit for an utterance's id, or None.

    Ids stand in ``trn`` files, where white space ends them, and in file names.
    """
    if not isinstance(uid, str) or not uid or uid != "".join(uid.split()):
        return f"bad id: {_short(uid)} is empty or has white space"
    if "/" in uid or uid in (".", ".."):
        return f"bad id: {_short(uid)} has a slash, and ids become file names"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in uid):
        return f"bad id: {_short(uid)} has a control character"
    size = len(uid.encode("utf-8"))
    if size > MAX_ID_BYTES:
        return f"bad id: {_short(uid)} has {size} bytes, {MAX_ID_BYTES} are allowed"
    return None


def text_problem(text: str) -> str | None:
    """Why *text* is unfit for a transcript, or None; white space has been put in order already."""
    if not text:
        return "empty transcript"
    if "\ufffd" in text:
        return "bad transcript: U+FFFD stands for bytes that some program could not decode"
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"bad transcript: the control character U+{ord(character):04X}"
    return None


def file_name(uid: str) -> str:
    """A file name for *uid*, without a suffix: itself where that is safe, otherwise escaped; different ids, different
    names."""
    name = quote(uid, safe=" !#$&'()+,;=@[]^{}~")
    if name in (".", "..") or (name != uid and len(name) > MAX_ID_BYTES) or len(name.encode("utf-8")) > MAX_ID_BYTES:
        return hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()
    return name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
