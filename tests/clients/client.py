"""A client that knows the service by its OpenAPI document alone: `likeness_client` is generated."""

import json
import sys
from pathlib import Path

from likeness_client import Client
from likeness_client.api.faces import detect
from likeness_client.api.gallery import enroll, identify, verify
from likeness_client.models import (
    DetectFilesBody,
    EnrollFilesBody,
    IdentifyFilesBody,
    Problem,
    VerifyFilesBody,
)
from likeness_client.types import File

service, photo, other = sys.argv[1:]


def photo_file(path: str) -> File:
    return File(payload=Path(path).open("rb"), file_name="photo.jpg", mime_type="image/jpeg")


with Client(base_url=service) as client:
    found = detect.sync(client=client, body=DetectFilesBody(image=photo_file(photo)))
    enrolled = enroll.sync(
        client=client, body=EnrollFilesBody(image=photo_file(photo), person_id="python")
    )
    verified = verify.sync(
        client=client, body=VerifyFilesBody(image=photo_file(other), person_id="python")
    )
    identified = identify.sync(
        client=client, body=IdentifyFilesBody(image=photo_file(other), top_k=1, target_fpir=0.01)
    )
    refused = verify.sync(
        client=client, body=VerifyFilesBody(image=photo_file(other), person_id="nobody")
    )
assert isinstance(refused, Problem)
print(  # noqa: T201
    json.dumps(
        {
            "faces": len(found.faces),
            "enrolled": len(enrolled.enrolled),
            "match": verified.is_match,
            "person": identified.faces[0].person_id,
            "refused": refused.code,
        }
    )
)
