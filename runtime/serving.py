"""Who can see what a page on this machine is given? Nobody else: no other site, no other user, and nothing stays."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable

HERE = ("127.0.0.1", "localhost")


class OnlyFromHere:
    """ASGI middleware that answers 403 to whatever isn't asked by the page itself, or by a program on this machine.

    A browser tells the name under which it found the page (`Host`), and the site whose script asks (`Origin`). Another
    name is that of a site which has made its own name mean this machine, to be taken for the page (DNS rebinding).
    """

    def __init__(self, application: Callable[..., Awaitable[None]]):
        self.application = application

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan" or self.may_ask(scope["headers"]):
            await self.application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"this page is for this machine alone\n"})

    @staticmethod
    def may_ask(headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether every `Host` is this machine, and every `Origin` the page itself."""
        hosts, origins = (
            [value.decode("latin-1") for key, value in headers if key == name] for name in (b"host", b"origin")
        )
        return len(hosts) == 1 and hosts[0].partition(":")[0] in HERE and set(origins) <= {f"http://{hosts[0]}"}


def guards() -> list:
    """`OnlyFromHere` as FastAPI takes it."""
    from starlette.middleware import Middleware  # comes with gradio, which not everybody has

    return [Middleware(OnlyFromHere)]


def private_folder() -> str:
    """Make a folder that only this user can open, for what is uploaded to gradio and drawn; gone at exit.

    To be called before gradio is imported. By default it keeps all of that for ever, readable by every user.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="brain-vqvae-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def ask_no_proxy() -> None:
    """Let this process reach its own page: a proxy can't, and nothing else is asked for."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
