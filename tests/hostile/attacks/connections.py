"""Connections that are held, and heads that do not end."""

import time

from tests.hostile.scenario import attack
from tests.hostile.target import Target


@attack("300 connections that send nothing")
def silent(target: Target) -> int:
    """For longer than a head may take."""
    with target.connections(300) as connections:
        time.sleep(12)
        return len(connections)
