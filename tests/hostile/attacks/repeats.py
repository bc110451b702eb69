"""One call, repeated before it is answered: many times at once, slowly, and left."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

from tests.hostile.scenario import attack
from tests.hostile.target import Target, answer_of, status_of

ENROLL = "/v1/enroll"
FACES = "/v1/collections/default/persons/{}/faces"
PIECES, PAUSE_S = 20, 0.1


def enrolled_once(target: Target, person_id: str) -> None:
    """Forgets the person too."""
    faces = target.ask("GET", FACES.format(person_id)).json()["items"]
    target.expect(len(faces), 1)
    target.ask("DELETE", f"/v1/collections/default/persons/{person_id}")


@attack("one enrollment 30 times at once under one Idempotency-Key")
def repeated(target: Target) -> int:
    """Each is computed, and one is stored."""
    key = f"at-once-{time.time()}"

    def send(_: int) -> int:
        return target.ask(
            "POST", ENROLL, data={"person_id": "repeated"}, files={"image": target.photo},
            headers={"Idempotency-Key": key},
        ).status_code  # fmt: skip

    with ThreadPoolExecutor(30) as pool:
        for status in pool.map(send, range(30)):
            target.expect(status, 200, 503)
    enrolled_once(target, "repeated")
    return 30


@attack("one enrollment 30 times under one Idempotency-Key, slowly; half of the clients leave")
def repeated_slowly(target: Target) -> int:
    """Those who leave do so when the whole body is sent."""
    key = f"slowly-{time.time()}"
    photo = base64.b64encode(target.photo).decode()
    body = json.dumps({"person_id": "slow", "image": photo}).encode()
    head = target.head(
        "POST", ENROLL, content_type="application/json", content_length=str(len(body)),
        idempotency_key=key, connection="close",
    )  # fmt: skip
    size = len(body) // PIECES + 1

    def send(number: int) -> int:
        with target.connect() as connection:
            connection.sendall(head)
            for start in range(0, len(body), size):
                connection.sendall(body[start : start + size])
                time.sleep(PAUSE_S)
            return status_of(answer_of(connection, 30)) if number % 2 else 200

    with ThreadPoolExecutor(30) as pool:
        for status in pool.map(send, range(30)):
            target.expect(status, 200, 503)
    enrolled_once(target, "slow")
    return 30
