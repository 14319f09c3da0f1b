"""Makes other kinds of models from the tiny Llama, and a recording for one of them."""

import io
import json
import math
import shutil
import struct
import wave
from pathlib import Path

MAKER_OF_WHISPER = Path(__file__).parents[1] / "make_tiny_whisper.py"
"""Script for the engine's interpreter. Its arguments are TOKENIZER_FOLDER FOLDER."""


def write_embedding_model(tiny_model: Path, model: Path) -> None:
    """Write the tiny Llama with the files that set the pooling of Sentence Transformers."""
    shutil.copytree(tiny_model, model)
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')


def a_tone(rate: int) -> bytes:
    """Return a WAV file with one second of a tone. `rate` is in samples per second."""
    samples = (int(9000 * math.sin(2 * math.pi * 440 * moment / rate)) for moment in range(rate))
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()
