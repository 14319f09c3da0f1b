"""The reports as JSON for the operator and KEDA, and what the learner knows for its follower."""

import logging
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from llmservice_operator.api.scaling_report import Calibration, ScalingReport
from llmservice_operator.metrics_server.report import calibration_of, checkpoint_from
from llmservice_operator.scaling.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

Key = tuple[str, str]

CALIBRATIONS_PATH = "/v1/calibrations"
LEARNER_TIMEOUT_SECONDS = 1.0

_CALIBRATIONS = TypeAdapter(dict[str, Calibration])
"""By NAMESPACE/NAME."""


def create_scaling_app(
    reports: Callable[[], Mapping[Key, ScalingReport]],
    learned: Callable[[], Mapping[Key, Checkpoint]],
) -> web.Application:
    async def scaling(request: web.Request) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        report = reports().get(key)
        if report is None:
            message = f"the metrics server knows no LLMService {key[0]}/{key[1]}"
            return web.json_response({"message": message}, status=404)
        return web.json_response(text=report.model_dump_json(by_alias=True))

    async def calibrations(_: web.Request) -> web.Response:
        found = {f"{key[0]}/{key[1]}": calibration_of(it) for key, it in learned().items()}
        body = _CALIBRATIONS.dump_json(found, by_alias=True)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/scaling/{namespace}/{name}", scaling)
    app.router.add_get(CALIBRATIONS_PATH, calibrations)
    return app


class Learner:
    """The other metrics server, the one that learns."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=LEARNER_TIMEOUT_SECONDS)
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, address: str) -> dict[Key, Checkpoint]:
        """Return what it has learned; nothing when it does not answer."""
        try:
            async with self._session.get(
                f"http://{address}{CALIBRATIONS_PATH}", allow_redirects=False
            ) as answer:
                answer.raise_for_status()
                found = _CALIBRATIONS.validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            logger.warning("the learner at %s does not answer: %s", address, error)
            return {}
        return {_key(name): checkpoint_from(it) for name, it in found.items()}


def _key(name: str) -> Key:
    namespace, _, service = name.partition("/")
    return namespace, service
