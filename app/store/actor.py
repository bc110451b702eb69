"""Who acts: set by each entry point, read by the audit log."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The default: what the service does by itself, such as maintenance.
actor: ContextVar[str] = ContextVar("actor", default="service")


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Changes within this block are those of `name`: `key:…`, `token:…`, `caller`, `import:…` or
    `user:…`."""
    token = actor.set(name)
    try:
        yield
    finally:
        actor.reset(token)


def user_of_command() -> str:
    """The user of this machine who runs a command."""
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # an id without a name, as in a container
        return "user:unknown"
