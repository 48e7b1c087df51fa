"""The page's connection, in a real browser, against a server that behaves well or badly on purpose."""

import contextlib
import http
import json
import threading
import time
from pathlib import Path

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import serve

STATIC = Path("app/page/static")
PAGE = b"<!doctype html><title>socket</title>"

# Connections by name; of each, what it told and when. `speak` sends sound as a microphone does.
BEGIN = """async () => {
  const {Connection} = await import("/static/socket.js");
  globalThis.all = {};
  globalThis.begin = (name) => {
    const told = [], tell = (kind) => (...given) => told.push([kind, ...given]);
    const at = performance.now();
    const one = (all[name] = {told, at});
    one.connection = new Connection({
      onOpen: (again) => {
        told.push(["open", again]);
        one.connection.send({type: "be", name});
      },
      onEvent: (event) => event.type === "most.vad" || told.push(["event", event.type]),
      onLost: (seconds) => {
        told.push(["lost", seconds, one.connection.isOpen]);
        one.lost_ms ??= performance.now() - one.spoke;
      },
      onRefused: tell("refused"),
      onOver: tell("over"),
    });
    one.connection.open();
    return one;
  };
  globalThis.speak = (name) => {
    all[name].spoke = performance.now();
    all[name].speaking = setInterval(() => all[name].connection.sendSound(new ArrayBuffer(960)), 20);
  };
  globalThis.kinds = (name) => all[name].told.map(([kind]) => kind);
}"""

COUNT_TIMERS = """(() => {
  const set = setTimeout, clear = clearTimeout;
  globalThis.timers = new Set();
  globalThis.setTimeout = (call, ...more) => {
    const timer = set(() => (timers.delete(timer), call()), ...more);
    timers.add(timer);
    return timer;
  };
  globalThis.clearTimeout = (timer) => (timers.delete(timer), clear(timer));
})();"""


class Server:
    """`answer` is what it says to who wants a socket (None: come in), `facts` to who asks for the facts."""

    def __init__(self):
        self.reset()
        self.socket = serve(self.converse, "127.0.0.1", 0, process_request=self.http, compression=None, max_size=None)
        self.port = self.socket.socket.getsockname()[1]
        threading.Thread(target=self.socket.serve_forever, daemon=True).start()

    def reset(self):
        self.answer = lambda: None
        self.facts = lambda: (200, b"{}")
        self.tries = 0
        self.over = threading.Event()  # lets go who is kept waiting

    def http(self, _, request):
        if request.path == "/v1/realtime":
            self.tries += 1
            status = self.answer()
            return status and response(status, b"")
        if request.path == "/facts.json":
            return response(*self.facts(), "application/json")
        if request.path == "/":
            return response(200, PAGE, "text/html")
        path = STATIC / request.path.removeprefix("/static/")
        return response(200, path.read_bytes(), "text/javascript") if path.is_file() else response(404, b"")

    def converse(self, socket):
        with contextlib.suppress(ConnectionClosed):
            kind = json.loads(socket.recv())["name"].split()[0]
            if kind != "line":
                tell(socket, "session.created")
            getattr(self, kind)(socket)

    def deaf(self, socket):
        """It takes everything and says nothing: what a dead connection looks like."""
        for _ in socket:
            pass

    def hearing(self, socket):
        for number, _ in enumerate(socket):
            if number % 5 == 0:
                tell(socket, "most.vad")

    def line(self, socket):
        tell(socket, "most.queue")
        self.deaf(socket)

    def full(self, socket):
        """It tells, and takes nothing."""
        with contextlib.suppress(ConnectionClosed):
            while not self.over.wait(0.1):
                tell(socket, "most.vad")

    def slow(self, socket):
        """It takes a long question at its leisure."""
        threading.Thread(target=self.full, args=(socket,), daemon=True).start()
        for message in socket:
            time.sleep(len(message) / 4e6)

    def ends(self, socket, code, why=""):
        tell(socket, "error", error={"message": "as the error said"})
        socket.close(code, why)

    def ends1000(self, socket):
        self.ends(socket, 1000, "as the reason said")

    def ends1008(self, socket):
        self.ends(socket, 1008)

    def ends1013(self, socket):
        self.ends(socket, 1013)

    def breaks(self, socket):
        socket.close(1011) if self.tries == 1 else self.deaf(socket)


def tell(socket, kind, **more):
    socket.send(json.dumps({"type": kind, **more}))


def response(status, body, kind="text/plain"):
    headers = Headers({"content-type": kind, "content-length": str(len(body)), "connection": "close"})
    return Response(status, http.HTTPStatus(status).phrase, headers, body)


@pytest.fixture(scope="module")
def shared_server():
    server = Server()
    yield server
    server.socket.shutdown()


@pytest.fixture
def server(shared_server):
    shared_server.reset()
    yield shared_server
    shared_server.over.set()


@pytest.fixture(scope="module")
def shared_page(browser_for):
    with browser_for() as page:
        page.add_init_script(COUNT_TIMERS)
        yield page


@pytest.fixture
def page(shared_page, server):
    shared_page.goto(f"http://localhost:{server.port}/")
    shared_page.evaluate(BEGIN)
    yield shared_page
    shared_page.goto("about:blank")


def begun(page, *names):
    """Connections of these names that are open, and whose server knows what it is to be."""
    for name in names:
        page.evaluate("(name) => void begin(name)", name)
        page.wait_for_function("(name) => all[name].told.length >= 2", arg=name)


def told(page, name):
    return page.evaluate("(name) => all[name].told", name)


def test_a_dead_connection_is_noticed_and_one_that_lives_is_left(page):
    speaking = ["deaf", "hearing", "line", "full", "slow"]
    begun(page, *speaking, "deaf but silent")
    page.evaluate(
        """(speaking) => {
      for (const name of ["full", "slow"])
        for (let n = 0; n < 60; n++) all[name].connection.send({type: "long", text: "-".repeat(5e5)});
      speaking.forEach(speak);
      globalThis.full = 0;
      setInterval(() => (full += all.slow.connection._socket.bufferedAmount > 2e5), 100);
    }""",
        speaking,
    )
    page.wait_for_timeout(6000)
    assert 3900 < page.evaluate("all.deaf.lost_ms") < 5500
    assert 1900 < page.evaluate("all.full.lost_ms") < 5500
    for name in ("deaf", "full"):
        opened, lost, again = [event for event in told(page, name) if event[0] != "event"][:3]
        assert (opened, lost, again) == (["open", False], ["lost", 0.5, False], ["open", True])
    assert page.evaluate("full") > 25  # the slow one was full for longer than a dead one may be
    for name in ("hearing", "line", "slow", "deaf but silent"):
        assert len(told(page, name)) == 2, name


def test_a_page_that_slept_raises_no_alarm(page):
    begun(page, "deaf")
    # Hours go by between two pieces of sound; and a page that hangs hands over many at once.
    page.evaluate("""async () => {
      const now = performance.now.bind(performance), one = all.deaf.connection;
      let slept = 0;
      performance.now = () => now() + slept;
      for (let n = 0; n < 20; n++) {
        slept += 3.6e6;
        for (let m = 0; m < 250; m++) one.sendSound(new ArrayBuffer(960));
        await new Promise((done) => setTimeout(done, 10));
      }
    }""")
    assert told(page, "deaf") == [["open", False], ["event", "session.created"]]


def test_nothing_runs_beside_an_open_or_a_closed_connection(page):
    begun(page, "hearing")
    page.evaluate("for (let n = 0; n < 20; n++) all.hearing.connection.sendSound(new ArrayBuffer(960))")
    assert page.evaluate("timers.size") == 0
    page.evaluate("all.hearing.connection.close()")
    assert page.evaluate("timers.size") == 0
    page.wait_for_timeout(200)
    assert len(told(page, "hearing")) == 2
    page.evaluate("all.hearing.connection.open(), all.hearing.connection.close()")  # ... nor one that was given up
    assert page.evaluate("timers.size") == 0


def test_a_lost_connection_is_told_at_once_and_opened_again(page, server):
    def facts():
        server.over.wait(2)
        return 200, b"{}"

    server.facts = facts  # it answers late
    begun(page, "breaks")
    page.wait_for_function("all.breaks.told.length >= 5")
    told_of = told(page, "breaks")
    assert told_of[2:4] == [["lost", 0.5, False], ["open", True]]
    assert not server.over.is_set()
    assert page.evaluate("performance.now() - all.breaks.at") < 1900  # the answer was not waited for


def test_it_waits_longer_and_longer(browser_for, server):
    with browser_for() as page:  # whose clock is ours
        page.clock.install(time=0)
        page.goto(f"http://localhost:{server.port}/")
        page.evaluate(BEGIN)
        page.clock.pause_at(3600)
        server.answer = lambda: 503
        page.evaluate("void begin('deaf')")

        def wait_for(count):
            page.wait_for_function("(count) => all.deaf.told.length === count", arg=count)

        waits = []
        for tries in range(1, 8):
            wait_for(tries)
            waits.append(told(page, "deaf")[-1][1])
            page.clock.run_for(1000 * waits[-1] - 10)
            page.wait_for_timeout(30)
            assert server.tries == tries
            if tries == 7:
                server.answer = lambda: server.over.wait() and 503  # it keeps waiting who comes
            page.clock.run_for(20)
        assert waits == [0.5, 1, 2, 4, 8, 8, 8]
        # An opening has its end, too.
        page.clock.run_for(9900)
        assert len(told(page, "deaf")) == 7
        page.clock.run_for(200)
        wait_for(8)
        server.answer = lambda: None
        page.clock.run_for(8000)
        wait_for(10)
        assert told(page, "deaf")[-2:] == [["open", False], ["event", "session.created"]]
        # Back for once, it is tried soon again.
        page.evaluate("all.deaf.connection._socket.onclose({code: 1006})")
        assert told(page, "deaf")[-1] == ["lost", 0.5, False]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_lets_nobody_in_is_told(page, server, status):
    server.answer = lambda: status
    server.facts = lambda: (status, json.dumps({"error": {"message": "show your token"}}).encode())
    page.evaluate("void begin('deaf')")
    page.wait_for_function("kinds('deaf').includes('refused')")
    assert told(page, "deaf") == [["lost", 0.5, False], ["refused", "show your token"]]
    assert page.evaluate("timers.size") == 0
    page.wait_for_timeout(700)
    assert server.tries == 1
    server.reset()
    page.evaluate("all.deaf.connection.open()")
    page.wait_for_function("kinds('deaf').includes('open')")


@pytest.mark.parametrize(("code", "why"), [(1000, "as the reason said"), (1008, None), (1013, None)])
def test_what_the_server_ends_on_purpose_is_not_opened_again(page, server, code, why):
    begun(page, f"ends{code}")
    page.wait_for_function("(name) => kinds(name).includes('over')", arg=f"ends{code}")
    assert told(page, f"ends{code}")[-1] == ["over", why or "as the error said", code]
    assert "lost" not in page.evaluate("(name) => kinds(name)", f"ends{code}")
    assert page.evaluate("timers.size") == 0
    page.wait_for_timeout(600)
    assert server.tries == 1


def test_without_a_network_it_is_lost_at_once_and_with_one_it_is_back_at_once(page):
    begun(page, "deaf")
    page.context.set_offline(True)
    try:
        page.wait_for_function("kinds('deaf').includes('lost')", timeout=1000)
    finally:
        page.context.set_offline(False)
    page.wait_for_function("kinds('deaf').filter((kind) => kind === 'open').length === 2", timeout=2000)
