import asyncio

from starlette.types import Message, Receive, Scope, Send

from app.api.turns import PIECE, SendInPieces


async def rounds_of(answers: int, body: bytes) -> list[tuple[int, int, Message]]:
    """Send answers that become ready together; for each message the round of the event loop, the
    number of its answer, and the message."""
    sent: list[tuple[int, int, Message]] = []
    now = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    in_pieces = SendInPieces(app)

    async def request(number: int) -> None:
        async def receive() -> Message:
            raise AssertionError("the body is not read")

        async def send(message: Message) -> None:
            sent.append((now, number, message))

        await in_pieces({"type": "http"}, receive, send)

    tasks = [asyncio.create_task(request(number)) for number in range(answers)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        now += 1
    return sent


def test_one_piece_of_all_long_answers_is_sent_in_each_round() -> None:
    body = bytes(range(256)) * (3 * PIECE // 256) + b"end"
    sent = asyncio.run(rounds_of(40, body))
    bodies = [(round_, number, one) for round_, number, one in sent if "body" in one]
    assert len(bodies) == 40 * 4
    assert len({round_ for round_, _, _ in bodies}) == 40 * 4
    for answer in range(40):
        own = [message for _, number, message in bodies if number == answer]
        assert b"".join(message["body"] for message in own) == body
        assert [message["more_body"] for message in own] == [True, True, True, False]


def test_a_short_answer_waits_for_nothing() -> None:
    sent = asyncio.run(rounds_of(40, b"short"))
    assert len({round_ for round_, _, _ in sent}) == 1
