"""A WSGI and an ASGI application that say which process answered."""

import os


def app(environ, start_response):
    """For chaussette, gunicorn and every other WSGI server."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello from pid %d\n" % os.getpid()]


async def asgi(scope, receive, send):
    """For uvicorn and every other ASGI server."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello from pid %d\n" % os.getpid()})
