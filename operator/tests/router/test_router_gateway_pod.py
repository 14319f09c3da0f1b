"""A router pod that answers Gateways: the supervisor and a picker, without Envoy."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.names import API_PORT, GATEWAY_READINESS_PROBE_PATH
from llmservice_operator.router import picker
from llmservice_operator.router.gateway_messages import DESTINATION, DESTINATION_NAMESPACE
from operator_support.processes import free_port
from router_support.whole_pod import (
    SERVICE,
    Names,
    ServedReplica,
    addresses,
    settings_of_pod,
    supervisor_of,
)
from shared_support.waiting import eventually_in_loop

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
HEALTH = "/grpc.health.v1.Health/Check"
LIVENESS = b"\x0a\x08liveness"
"""Question whether the process runs, as the protocol defines it."""


async def connect(port: int) -> grpc.aio.Channel:
    """Connect by TLS, trusting the picker's own certificate."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(pem.encode()),
        options=(("grpc.ssl_target_name_override", SERVICE),),
    )


async def ask(call: Any) -> str:
    """Send the headers of a request; return the chosen addresses."""
    message = pb.ProcessingRequest(request_headers=pb.HttpHeaders(end_of_stream=True))
    for name, value in ((":method", "GET"), (":path", "/v1/models")):
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    await call.write(message.SerializeToString())
    answer = pb.ProcessingResponse.FromString(await call.read())
    chosen: str = answer.dynamic_metadata[DESTINATION_NAMESPACE][DESTINATION]
    return chosen


async def test_the_pod_answers_gateways_by_tls_and_ends_after_the_last_answer(
    tmp_path: Path,
) -> None:
    (address,) = addresses(1)
    replica, port = ServedReplica(address, "r1"), free_port()
    await replica.start()
    settings = settings_of_pod(tmp_path, gateway_port=port)
    supervisor = supervisor_of(settings, Names([address]).resolve)
    running = asyncio.create_task(supervisor.run())
    try:
        await eventually_in_loop(lambda: not supervisor.why_not_ready())
        assert [each.name for each in supervisor.processes] == ["picker"]
        async with await connect(port) as channel:
            check = channel.unary_unary(HEALTH)
            assert await check(LIVENESS) == b"\x08\x01"
            async with asyncio.timeout(60):
                while await check(b"") != b"\x08\x01":
                    pass
            call = channel.stream_stream(PROCESS)()
            assert await ask(call) == f"{address}:{API_PORT}"

            supervisor.stop.set()
            response = pb.ProcessingRequest(response_headers=pb.HttpHeaders())
            await eventually_in_loop(lambda: supervisor.picker.is_ending)
            await call.write(response.SerializeToString())
            answered = pb.ProcessingResponse.FromString(await call.read())
            assert answered.WhichOneof("response") == "response_headers"
            assert not running.done()
            await call.done_writing()
            assert await call.read() is EOF
        assert await running == 0
    finally:
        supervisor.stop.set()
        await asyncio.wait([running], timeout=60)
        await replica.stop()


async def test_the_pod_serves_its_metrics_without_envoy(tmp_path: Path) -> None:
    (address,) = addresses(1)
    replica = ServedReplica(address, "r1")
    await replica.start()
    settings = settings_of_pod(tmp_path, gateway_port=free_port())
    supervisor = supervisor_of(settings, Names([address]).resolve)
    running = asyncio.create_task(supervisor.run())
    try:
        await eventually_in_loop(lambda: not supervisor.why_not_ready())
        url = f"http://127.0.0.1:{settings.management_port}/metrics"
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            assert "llmservice_router_replicas" in await answer.text()
        probe = url.removesuffix("/metrics") + GATEWAY_READINESS_PROBE_PATH
        async with aiohttp.ClientSession() as client, client.get(probe) as answer:
            assert answer.status == 200
    finally:
        supervisor.stop.set()
        await asyncio.wait([running], timeout=60)
        await replica.stop()


async def test_the_port_for_gateways_takes_a_bounded_number_of_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picker, "MAX_CONNECTIONS", 1)
    port = free_port()
    served = picker.Picker(settings_of_pod(tmp_path, gateway_port=port))
    server = await served._serve_gateways()
    assert server is not None
    try:
        async with await connect(port) as channel:
            first = channel.stream_stream(PROCESS)()
            await first.write(pb.ProcessingRequest().SerializeToString())

            async def is_refused() -> bool:
                try:
                    await channel.unary_unary(HEALTH)(LIVENESS)
                except grpc.aio.AioRpcError as error:
                    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return False

            async with asyncio.timeout(60):
                while not await is_refused():  # the first call has not arrived yet
                    pass
            first.cancel()
    finally:
        await server.stop(grace=None)
