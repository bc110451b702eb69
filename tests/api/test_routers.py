"""Routes are analysed once, when they are declared."""

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.main import OF_THE_GALLERY, ROUTERS, _add_routes
from app.api.query_parameters import only_declared_query


def test_the_application_has_the_routes_as_they_are() -> None:
    app = FastAPI()
    _add_routes(app)
    known = {id(route) for route in app.router.routes}
    assert all(id(route) in known for router in ROUTERS for route in router.routes)


def test_calls_of_the_gallery_refuse_query_parameters_that_they_do_not_take() -> None:
    for router in OF_THE_GALLERY:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            assert only_declared_query in {one.dependency for one in route.dependencies}
