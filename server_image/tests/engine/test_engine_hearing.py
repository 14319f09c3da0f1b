"""Tests a model that transcribes speech, with recordings in several formats."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from server_support.bystander import Question
from server_support.engine import SERVED_NAME, ModelServer, running_server
from server_support.hurtful_media import a_recording_in_a_form
from server_support.models import MAKER_OF_WHISPER, a_tone
from server_support.preloaded import Preloaded
from server_support.volleys import hurtful_bodies_delay_nobody


@pytest.fixture(scope="module")
def server(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("hearing")
    model, log = folder / "model", folder / "maker.log"
    maker = preloaded.start([str(MAKER_OF_WHISPER), str(tiny_model), str(model)], {}, folder, log)
    assert maker.wait(60) == 0, log.read_text()
    flags = (
        f"--model={model}",
        f"--served-model-name={SERVED_NAME}",
        "--dtype=float32",
        f"--kv-cache-memory-bytes={64 * 1024**2}",
    )
    with running_server(preloaded, folder / "server", *flags) as started:
        started.wait_until_ready()
        yield started


TO_WEBM = """
import io, sys, av
recorded = io.BytesIO()
with av.open(sys.stdin.buffer) as source, av.open(recorded, "w", format="webm") as target:
    stream = target.add_stream("libopus", rate=48_000)
    for frame in [*source.decode(audio=0), None]:
        target.mux(stream.encode(frame))
sys.stdout.buffer.write(recorded.getvalue())
"""


def as_in_a_browser(python: Path, recording: bytes) -> bytes:
    """Convert a WAV file to WebM, the format in which browsers record."""
    command = [str(python), "-c", TO_WEBM]
    return subprocess.run(command, input=recording, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture
def client(server: ModelServer) -> Iterator[OpenAI]:
    address = f"http://127.0.0.1:{server.api_port}/v1"
    with OpenAI(base_url=address, api_key="none", max_retries=0) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # from OpenAI's client
@pytest.mark.parametrize("rate", [16_000, 44_100], ids=["as the model hears", "of a CD"])
def test_a_recording_is_transcribed_and_translated(client: OpenAI, rate: int) -> None:
    file = ("tone.wav", a_tone(rate))
    asked = {"model": SERVED_NAME, "file": file, "temperature": 0}
    heard = client.audio.transcriptions.create(**asked, language="en")  # type: ignore[call-overload]
    assert heard.text
    assert heard.usage.seconds == 1
    translated = client.audio.translations.create(**asked)  # type: ignore[call-overload]
    assert translated.text != heard.text


def test_a_recording_of_a_browser_is_heard(client: OpenAI, engine_python: Path) -> None:
    recorded = as_in_a_browser(engine_python, a_tone(48_000))
    asked = {"model": SERVED_NAME, "language": "en", "temperature": 0}
    heard = client.audio.transcriptions.create(**asked, file=("tone.webm", recorded))  # type: ignore[call-overload]
    assert heard.text
    assert heard.usage.seconds in (1, 2)


def test_what_is_no_recording_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="Invalid or corrupted audio data"):
        client.audio.transcriptions.create(model=SERVED_NAME, file=("tone.wav", b"no recording"))


def test_hurtful_bodies_delay_nobody(server: ModelServer, tmp_path: Path) -> None:
    form = a_recording_in_a_form(a_tone(16_000), "a tone", "stream")
    asked = Question("/v1/audio/transcriptions", form.body, {"Content-Type": form.content_type})
    forms = ("/v1/audio/transcriptions", "/v1/audio/translations")
    hurtful_bodies_delay_nobody(server, asked, tmp_path, bodies=250, forms=forms)
