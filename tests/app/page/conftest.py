"""The shipped model behind the real server, with a token and without."""

import contextlib
import threading
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

import most_core
from app import server
from app.settings import Settings
from most_core import Most

TOKEN = "word"


@dataclass
class Site:
    url: str
    most: Most
    settings: Settings
    token: str = ""

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def get(self, path, **options):
        return httpx.get(self.url + path, headers=self.headers | options.pop("headers", {}), timeout=60, **options)

    def post(self, path, data, **options):
        return httpx.post(self.url + path, content=data, headers=self.headers, timeout=60, **options)


@pytest.fixture(scope="package")
def nano():
    return most_core.load("assets/nano", device="cpu", slots=server.places(Settings()))


@contextlib.contextmanager
def served(most, settings):
    listener = server.listen(settings)
    running = uvicorn.Server(server.config(server.create(most, settings), settings))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", most, settings, settings.token)
    running.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="package")
def site(nano):
    with served(nano, Settings(port=0, seconds=20, characters=300)) as site:
        yield site


@pytest.fixture(scope="package")
def guarded(nano):
    with served(nano, Settings(port=0, token=TOKEN)) as site:
        yield site
