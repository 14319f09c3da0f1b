"""Generates forms, recordings, pictures and tensors that take long to read."""

import base64
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from server_support.engine import SERVED_NAME

BOUNDARY = "boundary"
_MOST_SAMPLES = 65_535


@dataclass(frozen=True)
class Form:
    """Request body with a form."""

    shape: str
    body: bytes
    content_type: str


def parts(chance: random.Random, size: int) -> list[Any]:
    """Return parts of a message's content. Their media have about the given size together."""
    number = chance.choice((1, 1, 20, 1000))
    each = size // number
    recording = chance.choice(list(RECORDINGS.values()))(chance, each)
    encoded = base64.b64encode(chance.choice((a_picture(each), recording))).decode()
    address = f"data:image/png;base64,{encoded}"
    part = chance.choice(
        (
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "video_url", "video_url": {"url": address}},
            {"type": "audio_url", "audio_url": {"url": address}},
            {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
            {"type": "input_image", "image_url": address},
            {"type": "file", "file": {"file_data": encoded}},
        )
    )
    return [part] * number


def encoded_tensors(chance: random.Random, size: int) -> Any:
    """Return data that is not a tensor, once or many times."""
    number = chance.choice((1, 100, 2000))
    each = size * 3 // 4 // number
    kind = chance.choice((b"PK\x03\x04", b"\x80\x02cos\nsystem\n", b""))
    encoded = base64.b64encode(kind + bytes(each)).decode()
    return encoded if number == 1 else [encoded] * number


def a_picture(size: int) -> bytes:
    """Return a PNG picture of one colour. Its pixels take far more memory than its file."""
    return _black(2000 if size < 2**20 else 8000)


@cache
def _black(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pressed = zlib.compressobj(9)
    row = bytes(side + 1)
    data = b"".join(pressed.compress(row) for _ in range(side)) + pressed.flush()
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _wav(
    rate: int, data: bytes, told: int | None = None, channels: int = 1, bits: int = 16
) -> bytes:
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    length = len(data) if told is None else told
    head = b"RIFF" + struct.pack("<I", min(length + 36, 0xFFFFFFFF)) + b"WAVEfmt "
    return head + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length) + data


def _of_one_hertz(chance: random.Random, size: int) -> bytes:
    """Return a recording with a very low sample rate. At the sample rate of the model, it has up to
    thousands of times as many samples.
    """
    return _wav(chance.choice((1, 8, 100, 1000)), bytes(size))


def _of_many_channels(chance: random.Random, size: int) -> bytes:
    return _wav(16_000, bytes(size), channels=chance.choice((8, 255, 32_767)))


def _longer_than_it_is(chance: random.Random, size: int) -> bytes:
    return _wav(16_000, bytes(size), told=0xFFFFFFF0)


def _silence(chance: random.Random, size: int) -> bytes:
    return _wav(chance.choice((8000, 16_000, 384_000)), bytes(size))


def _noise(chance: random.Random, size: int) -> bytes:
    return _wav(44_100, chance.randbytes(size))


def _pressed_silence(chance: random.Random, size: int) -> bytes:
    """Return a FLAC file of constant frames. A frame has 15 bytes for 65,535 samples."""
    rate = chance.choice((1, 8000, 48_000))
    frames = 500 if size < 2**20 else 5000
    sizes = struct.pack(">HH", _MOST_SAMPLES, _MOST_SAMPLES) + bytes(6)
    facts = rate << 44 | 15 << 36 | frames * _MOST_SAMPLES & (2**36 - 1)
    stream = b"fLaC\x80\x00\x00\x22" + sizes + struct.pack(">Q", facts) + bytes(16)
    return stream + b"".join(_silent_frame(number) for number in range(frames))


@cache
def _silent_frame(number: int) -> bytes:
    head = b"\xff\xf8\x70\x08" + _as_long_utf8(number) + struct.pack(">H", _MOST_SAMPLES - 1)
    frame = head + bytes([_checksum(head, 8, 0x07)]) + b"\x00\x00\x00"
    return frame + struct.pack(">H", _checksum(frame, 16, 0x8005))


def _as_long_utf8(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    if number < 0x800:
        return bytes([0xC0 | number >> 6, 0x80 | number & 63])
    return bytes([0xE0 | number >> 12, 0x80 | number >> 6 & 63, 0x80 | number & 63])


def _checksum(data: bytes, bits: int, polynomial: int) -> int:
    rest, top, mask = 0, 1 << (bits - 1), (1 << bits) - 1
    for byte in data:
        rest ^= byte << (bits - 8)
        for _ in range(8):
            rest = (rest << 1 ^ polynomial if rest & top else rest << 1) & mask
    return rest


def _no_recording(chance: random.Random, size: int) -> bytes:
    start = chance.choice(
        (b"OggS", b"ID3\x04", b"\xff\xfb\x90", b"fLaC", b"\x1aE\xdf\xa3", b"RIFF")
    )
    return start * (size // len(start)) if chance.random() < 0.5 else start + chance.randbytes(size)


HEARD = ("a recording that names a wrong length", "a silent recording", "a recording of noise")
"""Shapes of the recordings that the engine transcribes."""

RECORDINGS: Mapping[str, Callable[[random.Random, int], bytes]] = {
    "a recording of one hertz": _of_one_hertz,
    "a recording of many channels": _of_many_channels,
    "a recording that names a wrong length": _longer_than_it_is,
    "a silent recording": _silence,
    "a recording of noise": _noise,
    "a compressed silent recording": _pressed_silence,
    "no recording": _no_recording,
}


def _field(name: str, value: bytes, more: bytes = b"") -> bytes:
    head = b'--%s\r\nContent-Disposition: form-data; name="%s"' % (BOUNDARY.encode(), name.encode())
    return head + more + b"\r\n\r\n" + value + b"\r\n"


def a_recording_in_a_form(recording: bytes, shape: str = "a recording", *more: str) -> Form:
    """Return a form that requests the text of a recording. The fields in `more` are true."""
    file = _field("file", recording, b'; filename="a.wav"')
    return _form(shape, _ASKED + b"".join(_field(name, b"true") for name in more) + file)


def a_form(chance: random.Random, size: int) -> Form:
    """Return a form. Most forms contain a recording."""
    shape = chance.choice((*RECORDINGS, *RECORDINGS, *_FORMS))
    if shape in RECORDINGS:
        return a_recording_in_a_form(RECORDINGS[shape](chance, size), shape)
    return _form(shape, _FORMS[shape](chance, size))


def _form(shape: str, fields: bytes) -> Form:
    end = f"--{BOUNDARY}--\r\n".encode()
    return Form(shape, fields + end, f"multipart/form-data; boundary={BOUNDARY}")


_ASKED = _field("model", SERVED_NAME.encode()) + _field("language", b"en")


def _many_parts(chance: random.Random, size: int) -> bytes:
    part = _field(
        chance.choice(("a", "model", "file")), b"", chance.choice((b"", b'; filename="a"'))
    )
    return _ASKED + part * min(size // len(part), chance.choice((990, 1_000_000)))


def _long_field(chance: random.Random, size: int) -> bytes:
    return _ASKED + _field(chance.choice(("prompt", "model", "hotwords")), b"a" * size)


def _long_head(chance: random.Random, size: int) -> bytes:
    more = chance.choice((b"\r\nX-A: b", b"; a=b", b"c"))
    return _ASKED + _field("file", b"a", b'; filename="a"' + more * (size // len(more)))


def _near_boundaries(chance: random.Random, size: int) -> bytes:
    near = chance.choice((b"\r", b"\r\n", b"\r\n--", b"\r\n--bound", b"--boundar"))
    return _ASKED + _field("file", near * (size // len(near)), b'; filename="a"')


def _no_part(chance: random.Random, size: int) -> bytes:
    return chance.choice((b"a", b"\r\n", b"--", b"\0")) * (size // 2)


_FORMS: Mapping[str, Callable[[random.Random, int], bytes]] = {
    "many parts": _many_parts,
    "a long field": _long_field,
    "a long head of a part": _long_head,
    "near boundaries": _near_boundaries,
    "no part": _no_part,
}
