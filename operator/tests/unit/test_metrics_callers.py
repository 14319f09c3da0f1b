"""Tests that only certain ServiceAccounts may read load reports, whatever the API server does."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import BaseTestServer, TestServer

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.cluster import Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.metrics_server import callers
from llmservice_operator.metrics_server.callers import Readers, Tokens, Unchecked, admission
from llmservice_operator.metrics_server.operator_lease import AGAIN_SECONDS, OperatorLease
from llmservice_operator.metrics_server.peers import PeerClient
from llmservice_operator.metrics_server.report_api import create_report_app
from llmservice_operator.names import TOKEN_SENDER_ANNOTATION
from llmservice_operator.service_account_token import TokenFile
from operator_support.report import a_report
from shared_support.waiting import eventually_in_loop

OPERATOR = "system:serviceaccount:system:operator"
POD = "10.0.0.1"
KEY = ("ml", "qwen")
ALL, ONE, OTHER = "/v1/scaling", "/v1/scaling/ml/qwen", "/v1/scaling/other/qwen"
CLOSED = Readers(frozenset({"system/operator"}))


@dataclass
class Authenticator:
    """The API server's answers to TokenReviews."""

    users: dict[str, str] = field(default_factory=lambda: {"good": OPERATOR})
    """Users by their tokens."""
    error: Exception | None = None
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def review(self, token: str) -> str | None:
        self.asked.append(token)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return self.users.get(token)

    def tokens(self) -> Tokens:
        return Tokens(self.review, lambda: self.now)


REPORTS: Mapping[Key, LoadReport] = {KEY: a_report(demand_percent=170.0)}


class OneReport:
    reports = REPORTS

    async def reports_as_of(self, at: float) -> Mapping[Key, LoadReport]:
        return REPORTS

    def computed_for(self, learners: Collection[str]) -> Mapping[Key, LoadReport]:
        return REPORTS


@asynccontextmanager
async def serving(
    readers: Readers,
    authenticator: Authenticator | None = None,
    operators: OperatorLease | None = None,
) -> AsyncIterator[BaseTestServer]:
    tokens = (authenticator or Authenticator()).tokens()
    app = create_report_app(OneReport(), admission(readers, tokens, operators))
    async with TestServer(app) as server:
        yield server
    await tokens.close()


async def ask(server: BaseTestServer, path: str, token: str | None = None) -> tuple[int, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(server.make_url(path), headers=headers) as answer,
    ):
        body: Any = json.loads(await answer.text() or "{}") if answer.status != 404 else {}
        return answer.status, "" if answer.status == 200 else body.get("message", "")


async def until_checked(tokens: Tokens) -> None:
    await eventually_in_loop(lambda: not tokens._checks)


async def test_only_a_token_of_a_listed_account_opens_the_reports() -> None:
    users = {"good": OPERATOR, "pod": "system:serviceaccount:ml:default", "admin": "admin"}
    async with serving(CLOSED, Authenticator(users)) as server:
        for path in (ALL, ONE):
            assert await ask(server, path, "good") == (200, "")
            status, said = await ask(server, path)
            assert (status, "send a token of a ServiceAccount" in said) == (401, True)
            status, said = await ask(server, path, "unknown")
            assert (status, "the token is not valid" in said) == (401, True)
            assert await ask(server, path, "pod") == (403, f"{users['pod']} may not read this")
            assert await ask(server, path, "admin") == (403, "admin may not read this")
        assert (await ask(server, "/elsewhere"))[0] == 401


@pytest.mark.parametrize(
    ("scheme", "status"), [("bearer", 200), ("Basic", 401), ("Bearer", 200), ("", 401)]
)
async def test_the_token_is_a_bearer_token(scheme: str, status: int) -> None:
    async with serving(CLOSED) as server, aiohttp.ClientSession() as session:
        headers = {"Authorization": f"{scheme} good"}
        async with session.get(server.make_url(ALL), headers=headers) as answer:
            assert answer.status == status


async def test_without_listed_accounts_everybody_may_read_everything() -> None:
    async with serving(Readers(frozenset())) as server:
        assert [(await ask(server, path))[0] for path in (ALL, ONE)] == [200, 200]


async def test_where_keda_sends_no_token_only_single_reports_are_open() -> None:
    async with serving(Readers(CLOSED.of_all, one_is_open=True)) as server:
        assert [(await ask(server, path))[0] for path in (ALL, ONE)] == [401, 200]


@pytest.mark.parametrize(
    ("reader", "user", "statuses"),
    [
        ("keda/llm", "keda:llm", [403, 200, 404]),
        ("keda/llm", "ml:llm", [403, 403, 403]),
        ("llm", "ml:llm", [403, 200, 403]),
        ("llm", "other:llm", [403, 403, 404]),
        ("llm", "ml:other", [403, 403, 403]),
    ],
)
async def test_the_account_of_keda_reads_single_reports_at_most_of_its_namespace(
    reader: str, user: str, statuses: list[int]
) -> None:
    authenticator = Authenticator({"kedas": f"system:serviceaccount:{user}"})
    async with serving(Readers(CLOSED.of_all, reader), authenticator) as server:
        assert [(await ask(server, path, "kedas"))[0] for path in (ALL, ONE, OTHER)] == statuses
        assert (await ask(server, ONE))[0] == 401


async def test_the_operator_and_the_metrics_servers_send_the_token_that_their_file_has_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("old\n")
    headers = TokenFile(path).headers
    async with serving(CLOSED) as server, aiohttp.ClientSession() as session:
        operator = LoadReportClient(str(server.make_url("/")), headers=headers)
        client, member = PeerClient(headers), f"{server.host}:{server.port}"
        await operator.poll(session)
        assert operator.read(*KEY) is None
        assert "the token is not valid: send one that has not expired" in caplog.text
        assert await client.reports(member, 0.0, ["me"]) is None

        path.write_text("good\n")
        await operator.poll(session)
        assert operator.read(*KEY) is not None
        assert await client.reports(member, 0.0, ["me"]) == REPORTS
        await client.close()


@dataclass
class Leases:
    """The operator's Lease, as a metrics server reads it."""

    lease: Manifest | None = None
    error: Exception | None = None
    reads: int = 0
    now: float = 1000.0

    async def read(self) -> Manifest | None:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.lease

    def held(self, holder: str, sender: str | None) -> None:
        annotations = {} if sender is None else {TOKEN_SENDER_ANNOTATION: sender}
        self.lease = {"metadata": {"annotations": annotations}, "spec": {"holderIdentity": holder}}

    async def accepts_none(self, operators: OperatorLease) -> bool:
        self.now += AGAIN_SECONDS
        return await operators.holder_sends_no_token()


async def test_requests_without_a_token_are_answered_only_while_an_earlier_operator_leads() -> None:
    leases = Leases()
    operators = OperatorLease(leases.read, lambda: leases.now)
    assert not await leases.accepts_none(operators)
    leases.error = ClusterError("no answer")
    assert not await leases.accepts_none(operators)
    leases.error = None
    leases.held("old", None)
    assert await leases.accepts_none(operators)
    # Between two leaders, and without an answer of the API server, nothing changes.
    leases.held("", None)
    assert await leases.accepts_none(operators)
    leases.error = ClusterError("no answer")
    assert await leases.accepts_none(operators)
    leases.error = None
    leases.held("new", "new")
    assert not await leases.accepts_none(operators)
    # A rollback of the operator leaves the annotation of the last holder.
    leases.held("old", "new")
    assert await leases.accepts_none(operators)


async def test_many_requests_without_a_token_cause_one_read_of_the_lease() -> None:
    leases = Leases()
    leases.held("old", None)
    operators = OperatorLease(leases.read, lambda: leases.now)
    async with serving(CLOSED, operators=operators) as server:
        assert [(await ask(server, path))[0] for path in (ALL, ONE) * 5] == [200] * 10
        assert (await ask(server, ALL, "unknown"))[0] == 401
        assert leases.reads == 1
        leases.held("new", "new")
        leases.now += AGAIN_SECONDS
        assert [(await ask(server, path))[0] for path in (ALL, ONE)] == [401, 401]


def test_a_missing_token_file_gives_no_header_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = TokenFile(tmp_path / "token")
    assert [token.headers(), token.headers()] == [{}, {}]
    assert caplog.text.count("cannot be read") == 1
    assert TokenFile(None).headers() == {}


async def test_an_accepted_token_is_checked_once_a_minute_and_nobody_waits_for_it() -> None:
    authenticator = Authenticator()
    tokens = authenticator.tokens()
    for _ in range(3):
        assert await tokens.account("good", POD) == OPERATOR
    assert authenticator.asked == ["good"]

    authenticator.now += callers.FRESH_SECONDS
    authenticator.users = {}
    assert await tokens.account("good", POD) == OPERATOR
    await until_checked(tokens)
    assert await tokens.account("good", POD) is None
    assert len(authenticator.asked) == 2


async def test_an_absent_api_server_refuses_new_tokens_and_keeps_accepted_ones_for_a_time() -> None:
    authenticator = Authenticator()
    tokens = authenticator.tokens()
    await tokens.account("good", POD)
    authenticator.error = ClusterError("POST: no answer")
    for _ in range(int(callers.KEPT_SECONDS / 60) - 1):
        authenticator.now += 60
        assert await tokens.account("good", POD) == OPERATOR
        await until_checked(tokens)
    with pytest.raises(Unchecked, match="the token cannot be checked now"):
        await tokens.account("new", POD)

    authenticator.now += 59
    assert await tokens.account("good", POD) == OPERATOR
    await until_checked(tokens)
    authenticator.now += 1
    with pytest.raises(Unchecked):
        await tokens.account("good", POD)
    async with serving(CLOSED, authenticator) as server:
        status, said = await ask(server, ALL, "good")
        assert (status, "send the request again later" in said) == (503, True)
        # The error of the API server names the metrics server's account.
        assert "POST" not in said
    authenticator.error = None
    assert await tokens.account("good", POD) == OPERATOR


async def test_a_check_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "REVIEW_SECONDS", 0.01)
    authenticator = Authenticator()
    authenticator.may_answer.clear()
    tokens = authenticator.tokens()
    with pytest.raises(Unchecked, match="cannot be checked now"):
        await tokens.account("good", POD)


async def test_requests_with_one_token_share_a_check_and_an_end_of_one_ends_no_other() -> None:
    authenticator = Authenticator()
    authenticator.may_answer.clear()
    tokens = authenticator.tokens()
    first, second = (asyncio.create_task(tokens.account("good", POD)) for _ in range(2))
    await eventually_in_loop(lambda: authenticator.asked)
    first.cancel()
    authenticator.may_answer.set()
    assert await second == OPERATOR
    assert authenticator.asked == ["good"]


async def test_unknown_tokens_cannot_load_the_api_server_or_displace_an_accepted_one() -> None:
    authenticator = Authenticator()
    tokens = authenticator.tokens()
    await tokens.account("good", POD)
    results = await asyncio.gather(
        *(tokens.account(f"bad-{n}", f"10.0.1.{n % 100}") for n in range(1000)),
        return_exceptions=True,
    )
    limited = [it for it in results if isinstance(it, Unchecked)]
    assert "send the request again later" in str(limited[0])
    assert results.count(None) == 1000 - len(limited) <= 51
    assert len(authenticator.asked) == 1 + results.count(None)
    assert await tokens.account("good", POD) == OPERATOR

    for number in range(2 * callers.MOST_TOKENS):
        authenticator.now += 1 / callers.UNKNOWN_PER_SECOND
        await tokens.account(f"other-{number}", f"10.0.2.{number % 100}")
        authenticator.error = ClusterError("away")
        assert await tokens.account("good", POD) == OPERATOR
        authenticator.error = None
    assert len(tokens._known) == callers.MOST_TOKENS


async def test_a_flood_of_unknown_tokens_from_one_address_keeps_no_other_from_a_check() -> None:
    authenticator = Authenticator({"renewed": OPERATOR})
    tokens = authenticator.tokens()
    for second in range(10):
        authenticator.now += 1
        flood = (tokens.account(f"bad-{second}-{number}", POD) for number in range(1000))
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert results.count(None) <= callers.UNKNOWN_PER_ADDRESS + 1
    assert await tokens.account("renewed", "10.0.0.2") == OPERATOR


async def test_the_rates_of_only_so_many_addresses_are_remembered() -> None:
    authenticator = Authenticator({})
    tokens = authenticator.tokens()
    for number in range(callers.MOST_ADDRESSES + 10):
        authenticator.now += 1
        await tokens.account("bad", f"10.0.{number // 256}.{number % 256}")
        authenticator.now += callers.REFUSED_SECONDS
    assert len(tokens._rates) == callers.MOST_ADDRESSES


async def test_a_header_that_is_no_text_is_refused_as_a_missing_token() -> None:
    async with serving(CLOSED) as server:
        reader, writer = await asyncio.open_connection(str(server.host), server.port)
        writer.write(
            f"GET {ALL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ".encode()
            + b"\xff\r\nConnection: close\r\n\r\n"
        )
        assert b" 401 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_refused_token_is_checked_again_after_ten_seconds() -> None:
    authenticator = Authenticator({})
    tokens = authenticator.tokens()
    for _ in range(3):
        assert await tokens.account("good", POD) is None
    assert authenticator.asked == ["good"]
    authenticator.now += callers.REFUSED_SECONDS
    authenticator.users = {"good": OPERATOR}
    assert await tokens.account("good", POD) == OPERATOR
