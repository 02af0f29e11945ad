"""eSpeak NG through its C API: text to samples, a pure function of its arguments.

The engine keeps state between utterances (noise generator, flutter phase, filter memories) that neither
``espeak_ng_SetRandSeed`` nor ``espeak_Terminate`` resets: the same call gave other samples in 66 of 78 cases when
only the order of the utterances changed. So the shared library is unloaded and loaded anew for each utterance, which
costs about 4 ms and resets all of it.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import threading

import numpy as np

SAMPLING_RATE = 22050
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _CHARACTERS = 2, 0x8000, 1, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()


def _load() -> ctypes.CDLL:
    import espeakng_loader

    path = espeakng_loader.get_library_path()
    if hasattr(os, "RTLD_NOLOAD"):
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        except OSError:
            pass
        else:
            raise RuntimeError(f"{path} is in use elsewhere in this process, so its state cannot be reset")
    library = ctypes.CDLL(path)
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_ng_SetRandSeed.restype = None
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT)
    if rate != SAMPLING_RATE:
        _ctypes.dlclose(library._handle)
        raise RuntimeError(f"eSpeak NG does not start with the data in {data.decode()} (answer {rate})")
    return library


@functools.cache
def variants() -> frozenset[str]:
    """The voice variants that the engine has, such as ``f3`` (for ``en-us+f3``)."""
    import espeakng_loader

    return frozenset(os.listdir(os.path.join(espeakng_loader.get_data_path(), "voices", "!v")))


def synthesise(
    text: str, voice: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50, seed: int = 0
) -> np.ndarray:
    """Samples (T,), int16 at 22,050 Hz, of *text* spoken by *voice* (``"en-us+f3"``: language and variant).

    Args:
        rate: words a minute (80-450). pitch, pitch_range: 0-99. seed: of the engine's noise generator.

    Raises:
        ValueError: there is no such voice. RuntimeError: the engine does not start, or gives no sound.
    """
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, _events):
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _LOCK:
        library = _load()
        try:
            library.espeak_SetSynthCallback(collect)
            if library.espeak_SetVoiceByName(voice.encode()) or (
                # the engine takes the plain voice for a variant that it does not have
                "+" in voice and voice.partition("+")[2] not in variants()
            ):
                raise ValueError(f"eSpeak NG has no voice '{voice}'")
            for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, pitch_range)):
                library.espeak_SetParameter(parameter, int(value), 0)
            library.espeak_ng_SetRandSeed(seed)
            # the breath noise of the Klatt voices is drawn from libc's rand()
            ctypes.CDLL(None).srand(ctypes.c_uint(seed))
            encoded = text.encode() + b"\0"
            status = library.espeak_Synth(encoded, len(encoded), 0, _CHARACTERS, 0, _UTF8, None, None)
            library.espeak_Synchronize()
        finally:
            library.espeak_Terminate()
            _ctypes.dlclose(library._handle)
    if status or not chunks:
        raise RuntimeError(f"eSpeak NG gave no sound for '{text}' by '{voice}'")
    return np.frombuffer(b"".join(chunks), dtype=np.int16)
