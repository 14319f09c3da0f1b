import pytest

from llmservice_operator.router.handover_wire import LONGEST_LIST, decode, encode, join
from llmservice_operator.routing.answers import MOST_SOURCES, AnswerLengths
from llmservice_operator.routing.handover import (
    MESSAGE_BLOCKS,
    Cached,
    Copied,
    Ended,
    Message,
    OfAll,
    OfReplica,
    OpenRequest,
    Sent,
    Started,
    Stored,
)
from llmservice_operator.routing.ratios import Evidence
from llmservice_operator.routing.replica import Dispatch
from llmservice_operator.routing.router import Learned
from llmservice_operator.scaling.signals import STEP_MOMENTS, StepSums

DISPATCH = Dispatch(0.5, 1024, 256.0, 200.5, 55.5, 0.25, 300.5, 2**64 - 1)
BLOCKS = bytes(range(256))
MESSAGES: list[Message] = [
    Sent(0, "chat-1", DISPATCH, BLOCKS),
    Started(2**53),
    Ended(3),
    Stored("chat-1", BLOCKS),
    OpenRequest(4, "chat-2", DISPATCH, True),
    Cached("chat-1", 1_700_000_000.25, BLOCKS),
    OfReplica("chat-1", Evidence(0.5, 2.0), StepSums(tuple(map(float, range(STEP_MOMENTS))))),
    OfAll(
        Learned(
            Evidence(4.0, 1.0), Evidence(3.0, 2.0), Evidence(5.0, 6.0), ((7, Evidence(8.0, 9.0)),)
        )
    ),
    Copied(),
]


@pytest.mark.parametrize("messages", [[], MESSAGES])
def test_a_list_gives_back_its_messages(messages: list[Message]) -> None:
    assert decode(join(map(encode, messages))) == messages


def test_the_longest_messages_fit_in_a_list() -> None:
    answers = AnswerLengths()
    for number in range(2 * MOST_SOURCES):
        answers.add(2**64 - 1 - number, 1000 / 3)
    third = Evidence(1 / 3, 1 / 3)
    learned = Learned(third, third, third, answers.evidence())
    longest = (Cached("x" * 253, 1.0, bytes(8 * MESSAGE_BLOCKS)), OfAll(learned))
    assert all(len(join([encode(each)])) < LONGEST_LIST / 10 for each in longest)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the list: Invalid JSON"),
        (b'[{"kind": "unknown"}]', "0: Input tag"),
        (b'[{"kind": "started", "number": "x"}]', "0.started.number: "),
        (join([encode(MESSAGES[0]).replace(b"200.5", b"NaN")]), "0.sent.dispatch.3: "),
        (join([encode(MESSAGES[6]).replace(b"0.0,1.0,", b"")]), "0.replica.steps: "),
    ],
)
def test_another_content_is_refused_with_the_place(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match="no list of messages") as refused:
        decode(content)
    assert problem in str(refused.value)
    assert refused.value.__cause__ is None
