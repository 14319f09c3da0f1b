"""Tests the comparison of real clients, and that the table of its results is not stale."""

import re
from typing import Any

import pytest

from clients import environments, page
from clients.catalogue import CLIENTS, Client
from clients.comparison import comparable, differences
from clients.known import Known, verdict

REPLY = {
    "id": "chatcmpl-0123456789abcdef",
    "created": 5,
    "choices": [{"text": "a", "logprob": 0.5}],
}


def found(ours: Any, theirs: Any) -> list[str]:
    return differences(comparable(ours), comparable(theirs))


def test_replies_that_differ_in_the_random_part_of_an_id_and_in_time_are_equal() -> None:
    assert found(REPLY, {**REPLY, "id": "chatcmpl-fedcba9876543210", "created": 6}) == []


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        ({**REPLY, "id": "cmpl-0123456789abcdef"}, "id: 'chatcmpl-*' instead of 'cmpl-*'"),
        ({**REPLY, "created": None}, "created: '(time)' instead of None"),
        ({**REPLY, "usage": None}, "usage: '(absent)' instead of None"),
        (
            {**REPLY, "choices": [{"text": "b", "logprob": 0.5}]},
            "choices[0].text: 'a' instead of 'b'",
        ),
        (
            {**REPLY, "choices": [{"text": "a", "logprob": 0.6}]},
            "choices[0].logprob: 0.5 instead of 0.6",
        ),
        (
            {**REPLY, "choices": []},
            "choices: [{'text': 'a', 'logprob': 0.5}] instead of []",
        ),
    ],
)
def test_every_other_difference_is_found_at_its_path(theirs: Any, difference: str) -> None:
    assert found(REPLY, theirs) == [difference]


def test_a_number_is_not_a_truth_value_and_a_vector_may_be_rounded_otherwise() -> None:
    assert found({"a": 1}, {"a": True}) != []
    assert found({"a": [0.100001, 1]}, {"a": [0.1, 1]}) == []


def part(text: str, reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"object": "chunk", "choices": [choice]}


def test_streams_with_the_same_text_are_equal_wherever_they_are_cut() -> None:
    whole = {"stream": [part("Paris is", "stop")]}
    in_parts = {"stream": [part("Paris"), part(" is", "stop")]}
    other = {"stream": [part("Paris"), part(" was", "stop")]}

    assert found({"stream": [part("Par"), part("is"), part(" is", "stop")]}, in_parts) == []
    assert [each.split(": ")[0] for each in found(other, in_parts)] == [
        "chunk.choices.0.delta.content"
    ]
    # A stream without a finish reason also differs.
    assert found(whole, {"stream": [part("Paris is")]}) != []


def test_streams_whose_events_come_in_another_order_differ() -> None:
    first, second = {"type": "start"}, {"type": "stop"}

    assert found({"stream": [first, second]}, {"stream": [second, first]}) != []


def test_a_known_difference_explains_only_its_own_path() -> None:
    known = [Known("^OpenAI.*: refusal", r"^error\.message", "better", "it says more.")]

    assert verdict("OpenAI: chat", [], known) == ("equal", True)
    assert verdict("OpenAI: refusal", ["error.message: 1"], known) == (
        "better: it says more.",
        True,
    )
    for case, paths in (
        ("OpenAI: refusal", ["error.message: 1", "error.code: 2"]),
        ("OpenAI: chat", ["error.message: 1"]),
    ):
        assert not verdict(case, paths, known)[1]


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ("OpenAI: models, retrieve", "failure: with both servers, NotFoundError"),
        ("OpenAI: models, retrieve", "failure: 'NotFoundError' instead of '(absent)'"),
        ("OpenAI: models, retrieve", "reply: '(absent)' instead of {'id': 'model'}"),
        ("Anthropic: messages, the id of a request", "reply: False instead of True"),
        ("Chromium: chat", "reply.hasId: False instead of True"),
    ],
)
def test_no_known_difference_explains_that_this_server_is_the_worse_one(
    case: str, difference: str
) -> None:
    assert not verdict(case, [difference])[1]


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ("OpenAI: models, retrieve", "failure: '(absent)' instead of 'NotFoundError'"),
        ("OpenAI: models, retrieve", "reply: {'id': 'model'} instead of '(absent)'"),
        ("Anthropic: messages, the id of a request", "reply: True instead of False"),
        ("Chromium: chat", "reply.hasId: True instead of False"),
    ],
)
def test_what_this_server_does_better_is_known(case: str, difference: str) -> None:
    assert verdict(case, [difference])[0].startswith("better: ")


def test_a_run_of_one_client_keeps_the_rows_of_the_others() -> None:
    old = [page.Row("A", "1", "chat", "equal"), page.Row("B", "1", "chat", "equal")]
    new = [page.Row("A", "2", "tools", "better: it says more.")]

    rows = page.replaced(page.rows_of(page.text(old)), new, ["B", "A"])

    assert rows == [old[1], new[0]]


def test_a_feature_of_the_page_that_did_not_run_is_missing() -> None:
    old = [page.Row("A", "1", "chat", "equal"), page.Row("B", "1", "chat", "equal")]

    assert page.missing(old, [page.Row("A", "2", "tools", "equal")]) == [old[0]]
    assert page.missing(old, [page.Row("A", "2", "chat", "equal")]) == []


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.script.stem)
def test_a_client_runs_with_every_kind_of_model_that_its_cases_need(client: Client) -> None:
    script = client.script.read_text()
    if client.script.suffix == ".mjs":
        needed = set(re.findall(r"^ +(text|vectors|hearing): {", script, re.MULTILINE))
    else:
        needed = {
            re.findall(r'needs="(\w+)"', each)[0] if "needs=" in each else "text"
            for each in re.findall(r"^ *(?:@|cases\.)case\(.*$", script, re.MULTILINE)
        }
    assert needed == set(client.kinds)


def test_the_table_of_clients_has_every_client_in_its_locked_version() -> None:
    """This test fails after a change of a lock until `make test-clients` has run."""
    rows = page.rows_of(page.PAGE.read_text())
    assert {(row.client, row.version) for row in rows} == {
        (client.name, environments.version_of(client.package, client.lock)) for client in CLIENTS
    }
    assert [
        row for row in rows if not row.verdict.startswith(("equal", "better: ", "differs: "))
    ] == []
