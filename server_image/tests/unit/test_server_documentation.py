from fastapi import Body, FastAPI

from llmservice_server.documentation import document
from server_support.in_process import Client


def documented(with_administration: bool = False) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/completions", summary="Complete <it>")
    async def completions(body: dict[str, object] = Body()) -> None:  # noqa: B008
        pass

    @app.post("/pause")
    async def pause() -> None:
        pass

    document(app, "it's <mine>", with_administration)
    return app


async def test_a_route_that_the_model_lacks_is_not_described() -> None:
    app = documented()
    document(app, "a-model", with_administration=True, absent=("/pause",))
    assert set((await Client(app).get("/openapi.json")).json()["paths"]) == {"/v1/completions"}
    assert "/pause" not in (await Client(app).get("/docs")).body.decode()


async def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    page = (await Client(documented()).get("/docs")).body.decode()
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page


async def test_names_that_are_no_html_are_shown_as_they_are() -> None:
    page = (await Client(documented()).get("/docs")).body.decode()
    assert "Complete &lt;it&gt;" in page
    assert "&lt;mine&gt;" in page
    assert "<mine>" not in page
    # The quote in the name is escaped, so a shell reads it as text.
    assert "it'\\''s" in page


async def test_gives_every_route_with_a_body_its_example() -> None:
    schema = (await Client(documented()).get("/openapi.json")).json()
    media = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert media["example"]["model"] == "it's <mine>"


async def test_administration_is_described_only_where_it_is_open() -> None:
    for is_open in (False, True):
        answer = await Client(documented(is_open)).get("/openapi.json")
        assert ("/pause" in answer.json()["paths"]) is is_open
        page = (await Client(documented(is_open)).get("/docs")).body.decode()
        assert ("/pause" in page) is is_open
