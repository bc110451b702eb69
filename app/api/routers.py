"""Routers whose routes the application has as they are.

FastAPI's `include_router` would analyse each route a second time, with what the application adds:
35 ms of CPU time of a start. So nothing is added there; a router adds it.
"""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute

from app.api.query_parameters import only_declared_query


class Router(APIRouter):
    """Its operations have the names of their functions in the OpenAPI document."""

    def __init__(self, **options: Any) -> None:
        """`options`: of APIRouter."""
        super().__init__(generate_unique_id_function=_name, **options)


class GalleryRouter(Router):
    """Its calls refuse query parameters that they do not take. (Calls that take photos are called
    without dependencies: `DirectRoutes`.)"""

    def __init__(self, **options: Any) -> None:
        super().__init__(dependencies=[Depends(only_declared_query)], **options)


def _name(route: APIRoute) -> str:
    return route.name
