"""What is refused while no access key is needed: the calls of administrators, and requests that a
browser sends for a page of somebody else.

On an address of this machine the service needs no key. A page that is open in a browser there could
enroll its own face under another person's id: browsers send forms and photos anywhere without
asking, and only keep the answer from the page. All that changes something carries `Origin`.
"""

from collections.abc import Collection, Iterable

from app.access.keys import Scope
from app.errors import Forbidden

Headers = Iterable[tuple[bytes, bytes]]


def refuse_without_keys(
    scope: Scope | None, headers: Headers, allowed_origins: Collection[str]
) -> None:
    """Raise Forbidden for a call that needs this scope, or None, if it has to wait for a key or is
    made for a page of another origin than the service's own and the allowed ones."""
    if scope is Scope.ADMIN:
        raise Forbidden(
            "There is no access key yet, and the first one is not created over HTTP: "
            "run `likeness keys create --name admin --scope all` where the service runs."
        )
    sent = {name: value.decode("latin-1") for name, value in headers if name in _READ}
    origin = sent.get(b"origin")
    if origin is None or not {origin, "*"}.isdisjoint(allowed_origins):
        return
    if origin.partition("://")[2].lower() != sent.get(b"host", "").lower():
        raise Forbidden(
            f"A page of {origin[:200]!a} made this call, and without an access key only pages of "
            "the service itself may. Name the origin in LIKENESS_CORS_ORIGINS, or create a key."
        )


_READ = (b"origin", b"host")
