"""Runs the recipes of README.md unchanged."""

import asyncio
import http.server
import socket
import threading

import pytest
from conftest import five, recipe, recipes

import ka

NLB = (1, 280, 30, 5, 0)


def test_every_recipe_is_tested():
    # Each test below runs one recipe.
    assert len(recipes()) == 4


def test_asyncio_connections_have_keepalive():
    names = recipe("async def serve")

    async def run():
        accepted = asyncio.get_running_loop().create_future()

        async def client(reader, writer):
            accepted.set_result(five(writer.get_extra_info("socket")))
            writer.close()

        server = await names["serve"](client, 0)
        async with server:
            _, writer = await names["connect"](*server.sockets[0].getsockname())
            assert five(writer.get_extra_info("socket")) == (1, 60, 10, 5, 0)
            assert await accepted == (1, 60, 10, 5, 0)
            writer.close()

    asyncio.run(run())


def test_asyncio_checks_a_connection_without_blocking_the_loop(monkeypatch):
    is_usable = recipe("async def is_usable")["is_usable"]

    async def run():
        server = await asyncio.start_server(lambda reader, writer: peers.append((reader, writer)), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await is_usable(reader, writer)
            await asyncio.sleep(1.2)
            assert await is_usable(reader, writer, 5)

            # A probe that blocks until the loop has run.
            ran = threading.Event()
            monkeypatch.setattr(ka, "probe", lambda sock, timeout: ran.wait(20))
            asyncio.get_running_loop().call_later(0.1, ran.set)
            assert await is_usable(reader, writer)
            monkeypatch.undo()

            while not peers:
                await asyncio.sleep(0.01)
            _, peer = peers.pop()
            peer.close()
            await peer.wait_closed()
            while not reader.at_eof():
                await asyncio.sleep(0.01)
            assert not await is_usable(reader, writer)
            writer.close()

    peers = []
    asyncio.run(run())


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def pooled(manager):
    """Returns the socket in the manager's only pool."""
    # connection_from_url would make a second pool if requests has asked for a pool with TLS settings.
    (key,) = manager.pools.keys()
    connection = manager.pools[key]._get_conn()
    assert connection.sock is not None, "the pool keeps no connection"
    return connection.sock


def test_urllib3_and_requests_connections_have_keepalive(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    names = recipe("requests")
    assert names["pool"].request("GET", server).data == b"ok"
    sock = pooled(names["pool"])
    assert five(sock) == NLB and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    session = names["session"]
    assert session.get(server).text == "ok"
    for scheme in ("http://", "https://"):
        assert type(session.get_adapter(scheme)) is names["Keepalive"]
    sock = pooled(session.get_adapter(server).poolmanager)
    assert five(sock) == NLB and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    # With a proxy, the connection is to the proxy.
    assert session.get("http://host.invalid/", proxies={"http": server}).text == "ok"
    proxy = session.get_adapter(server).proxy_manager[server]
    assert five(pooled(proxy)) == NLB


def test_reap_closes_inactive_connections():
    with ka.Reaper(1000) as reaper:
        sockets = {sock.fileno(): sock for sock in (socket.socket(), socket.socket())}
        first, second = sockets
        reaper.touch(first, 0)
        reaper.touch(second, 400)
        connections = dict(sockets)
        assert recipe("def reap")["reap"](reaper, connections, 1000) == 0.4
        assert list(connections) == [second] and sockets[first].fileno() == -1
        assert recipe("def reap")["reap"](reaper, connections, 1400) is None
        assert connections == {} and sockets[second].fileno() == -1
