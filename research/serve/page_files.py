"""The page for people at /, which is public: its files hold nothing, and what they ask for needs the key."""

import importlib.resources
from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from fastapi.responses import Response

_FOLDER = importlib.resources.files("research.serve") / "page"

# Nothing from elsewhere, nothing inline, no frame around it.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


# The page's files by path.
PATHS = {"/" if file.name == "index.html" else f"/page/{file.name}": file for file in _FOLDER.iterdir()}


def router() -> APIRouter:
    """The paths / and /page/…."""
    found = APIRouter(include_in_schema=False)
    for path, file in PATHS.items():
        endpoint = _endpoint(file.read_bytes(), _TYPES[f".{file.name.rsplit('.')[-1]}"])
        found.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    return found


def _endpoint(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def file() -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return file
