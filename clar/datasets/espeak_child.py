"""Speaks words with espeak-ng: a process of its own, run as a script by `digits.py`, standard library only.

espeak-ng keeps state between utterances (random numbers, echo, the last voice), so bytes that must not depend on what
was spoken before need a fresh process. This file imports nothing but the standard library: it starts in 20 ms.

stdin: one JSON object, {"library": path, "data": folder that holds espeak-ng-data, "voice": "en-gb+m1",
"words": [[word, words per minute, pitch 0-99, pitch range 0-99], ...]}.
stdout: for each word 4 bytes little-endian, the number of samples, then the samples, int16 little-endian, 22,050 Hz.
"""

import ctypes
import json
import os
import sys

SYNCHRONOUS_RETRIEVAL = 2  # espeak_AUDIO_OUTPUT: call back from within espeak_Synth, play nothing
EXIT_ON_ERROR_OFF = 0x8000  # espeakINITIALIZE_DONT_EXIT
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
SAMPLE_RATE = 22050


def main() -> int:
    """Speak what stdin asks for; returns the exit code."""
    order = json.load(sys.stdin)
    library = ctypes.CDLL(order["library"])
    # espeak-ng holds the path of its data in 160 bytes, so a deep environment must not show up in it.
    os.chdir(order["data"])
    if library.espeak_Initialize(SYNCHRONOUS_RETRIEVAL, 0, b".", EXIT_ON_ERROR_OFF) != SAMPLE_RATE:
        return _fail(f"espeak-ng does not start with the data in {order['data']}")

    pieces: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def take(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)
    if library.espeak_SetVoiceByName(order["voice"].encode()) != 0:
        return _fail(f"espeak-ng has no voice {order['voice']}")
    for word, rate, pitch, pitch_range in order["words"]:
        pieces.clear()
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else seeded with the time of day
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        text = word.encode()
        if library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, 1, None, None) != 0:
            return _fail(f"espeak-ng cannot say {word!r}")
        samples = b"".join(pieces)
        sys.stdout.buffer.write((len(samples) // 2).to_bytes(4, "little") + samples)
    return 0


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
