"""Stands for the other metrics servers of one that is measured: `python -m scrape.others PLAN`.

Each of them asks the measured one for its reports, as they all do, and answers with reports of the
services of which it is the learner. They are copies of one report of the measured one. The process
also reads all reports every five seconds, as the operator does.
"""

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

import aiohttp
from aiohttp import web

from llmservice_operator import names
from llmservice_operator.api.load_report import LOAD_REPORT
from llmservice_operator.metrics_server.peers import PeerClient
from llmservice_operator.metrics_server.process import PERIOD_SECONDS
from llmservice_operator.sharding import Ring
from scrape.cluster import keys_of
from scrape.member import Plan

ROUND_SECONDS = 2.0
"""Time in seconds that a round of the others takes."""


async def run(plan: Plan) -> None:
    """Answer for ever."""
    client, ring = PeerClient(), Ring(plan.members)
    template: dict[str, object] = {}

    @lru_cache(len(plan.members))
    def body(learner: str, at: float) -> str:
        keys = [key for key in keys_of(plan.services) if ring.keepers(key)[0] == learner]
        report = json.dumps({**template, "at": at})
        return "{" + ",".join(f'"{"/".join(key)}":{report}' for key in keys) + "}"

    async with asyncio.TaskGroup() as tasks:
        for member in plan.members:
            if member != plan.me:
                await _serve(member, body, template)
                tasks.create_task(_follow(client, plan.me, template))
        tasks.create_task(_read_all(plan.me))


async def _serve(
    member: str, body: Callable[[str, float], str], template: dict[str, object]
) -> None:
    async def reports(request: web.Request) -> web.Response:
        wanted = float(request.query["at"])
        at = math.floor((time.time() - ROUND_SECONDS) / PERIOD_SECONDS) * PERIOD_SECONDS
        if at < wanted or not template:
            await asyncio.sleep(
                min(float(request.query["wait"]), at + PERIOD_SECONDS - time.time() + ROUND_SECONDS)
            )
            at += PERIOD_SECONDS
        if not template:
            return web.json_response({})
        return web.json_response(text=body(member, at))

    app = web.Application()
    app.router.add_get(names.LOAD_REPORTS_PATH, reports)
    app.router.add_get(names.WAKES_PATH, _no_wakes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = member.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()


async def _no_wakes(request: web.Request) -> web.Response:
    await asyncio.sleep(float(request.query["wait"]))
    return web.json_response({})


async def _follow(client: PeerClient, me: str, template: dict[str, object]) -> None:
    known_until = 0.0
    while True:
        found = await client.reports(me, known_until, [me])
        known = [it for it in (found or {}).values() if it.demand_percent is not None]
        if known and not template:
            template |= LOAD_REPORT.dump_python(known[0], by_alias=True, mode="json")
        known_until = max((it.at for it in (found or {}).values()), default=known_until)
        await asyncio.sleep(0.5)


async def _read_all(me: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"http://{me}{names.LOAD_REPORTS_PATH}") as answer:
                    await answer.read()
            await asyncio.sleep(PERIOD_SECONDS)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(run(Plan(**json.loads(sys.argv[1]))))
