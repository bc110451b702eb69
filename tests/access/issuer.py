"""An OpenID Connect issuer on this machine: its documents over HTTP, and tokens that it signs."""

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.waiting import LOOK_EVERY_S

AUDIENCE = "likeness"
MAKERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


class Issuer:
    """An issuer. Close it at the end."""

    def __init__(self) -> None:
        self.private: dict[str, tuple[str, Any]] = {}
        self.requests: list[str] = []
        self.away = False
        self.changes: dict[str, Any] = {}
        self.others: list[Any] = []  # keys of other kinds that it also publishes
        self.hidden: set[str] = set()  # members that it leaves out of its keys
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                body = json.dumps(issuer.document(self.path)).encode()
                self.send_response(503 if issuer.away else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # By itself it looks for its end twice a second, and `close` waits for that.
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=[LOOK_EVERY_S], daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def document(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.changes
        keys = []
        for key_id, (algorithm, key) in self.private.items():
            public = MAKERS[algorithm][1].to_jwk(key.public_key(), as_dict=True)
            public |= {"kid": key_id, "use": "sig", "alg": algorithm}
            keys.append({name: one for name, one in public.items() if name not in self.hidden})
        return {"keys": self.others + keys}

    def add(self, key_id: str, algorithm: str = "ES256") -> None:
        self.private[key_id] = (algorithm, MAKERS[algorithm][0]())

    def token(self, key_id: str = "k1", **claims: Any) -> str:
        algorithm, key = self.private[key_id]
        return jwt.encode(self.claims(**claims), key, algorithm, headers={"kid": key_id})

    def claims(self, **others: Any) -> dict[str, Any]:
        now = datetime.now().astimezone()
        claims = {
            "iss": self.url, "aud": AUDIENCE, "sub": "robot", "azp": "entrance",
            "iat": now, "exp": now + timedelta(minutes=5), "scope": "openid likeness:identify",
        }  # fmt: skip
        return {name: value for name, value in (claims | others).items() if value is not None}
