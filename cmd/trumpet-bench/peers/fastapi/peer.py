"""A realtime server as a small company would write it, for scripts/bench fanout to measure beside Trumpet:
FastAPI, two uvicorn workers, and Redis pub/sub between whoever publishes and the workers.

It says on standard output where it listens, gives its clients what standard input says, a message's data on
each line, and ends with standard input. Redis is its own: on a socket in a temporary directory, and keeping
nothing. It needs Debian 12's packages, which MISSING names.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess

DEBIAN_PYTHON = "/usr/bin/python3"
MISSING = """\
fastapi: {} is missing: apt-get install --no-install-recommends python3-fastapi python3-uvicorn python3-redis \
python3-wsproto python3-uvloop python3-httptools redis-server"""

try:
    import httptools  # noqa: F401 (uvicorn's)
    import redis
    import redis.asyncio
    import uvicorn
    import uvloop  # noqa: F401 (uvicorn's)
    import wsproto  # noqa: F401 (uvicorn's)
    from fastapi import FastAPI, WebSocket
    from fastapi.responses import StreamingResponse
except ImportError as error:
    # Another python3 may come first in PATH, such as pyenv's, and does not see Debian's packages.
    if os.path.exists(DEBIAN_PYTHON) and os.path.realpath(sys.executable) != os.path.realpath(DEBIAN_PYTHON):
        os.execv(DEBIAN_PYTHON, [DEBIAN_PYTHON, *sys.argv])
    sys.exit(MISSING.format(error.name))

WORKERS = 2
BACKLOG = 4096
STALLED = 5  # seconds
CHANNEL = "bench"
READY = '{"type":"ready"}'
PR_SET_PDEATHSIG = 1  # prctl(2)

app = FastAPI()
sockets: dict[WebSocket, asyncio.Task[None]] = {}  # and who handles each
streams: set[asyncio.Queue[bytes]] = set()


@app.on_event("startup")
async def subscribe() -> None:
    pubsub = redis.asyncio.Redis(unix_socket_path=app.state.redis).pubsub()
    await pubsub.subscribe(CHANNEL)
    app.state.task = asyncio.create_task(fan_out(pubsub))  # a task that nobody refers to may be collected


async def fan_out(pubsub: redis.asyncio.client.PubSub) -> None:
    async for message in pubsub.listen():
        data = message["data"]
        if message["type"] == "subscribe":
            os.write(app.state.started, b"\n")
            continue
        event = b"data: %b\n\n" % data
        for queue in streams:
            queue.put_nowait(event)
        await send(data.decode())


async def send(text: str) -> None:
    """Sends to one WebSocket after the other, which is faster than a queue and a task for each."""
    waiting = list(sockets)
    while waiting:
        first = waiting[-1]  # whoever still is in STALLED seconds takes nothing
        try:
            async with asyncio.timeout(STALLED):
                while waiting:
                    await waiting[-1].send_text(text)
                    waiting.pop()
        except TimeoutError:
            if waiting[-1] is first and (handler := sockets.pop(waiting.pop(), None)):
                handler.cancel()  # which hangs up: it would hold up all others
        except Exception:  # it is leaving
            sockets.pop(waiting.pop(), None)


@app.websocket("/ws")
async def connect(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(READY)  # before anything else, and nothing comes in between
    sockets[websocket] = asyncio.current_task()
    try:
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass
    finally:
        sockets.pop(websocket, None)


@app.get("/api/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def events() -> AsyncIterator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue()  # without a limit: nothing is to be lost
    queue.put_nowait(f"event: ready\ndata: {READY}\n\n".encode())
    streams.add(queue)
    try:
        while True:
            waiting = [await queue.get()]
            while not queue.empty():
                waiting.append(queue.get_nowait())
            yield b"".join(waiting)
    finally:
        streams.discard(queue)


def serve(listener: socket.socket, redis_socket: str, started: int) -> None:
    """Is a worker process."""
    die_with_parent()
    app.state.redis, app.state.started = redis_socket, started
    uvicorn.Server(uvicorn.Config(
        app, loop="uvloop", http="httptools", ws="wsproto", lifespan="on", backlog=BACKLOG,
        log_level="warning", access_log=False, proxy_headers=False,
        ws_per_message_deflate=False, ws_ping_interval=None, ws_ping_timeout=None,
    )).run(sockets=[listener])


libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end(process: BaseProcess | subprocess.Popen[bytes]) -> None:
    process.terminate()
    wait = process.wait if isinstance(process, subprocess.Popen) else process.join
    with contextlib.suppress(subprocess.TimeoutExpired):
        wait(timeout=1)
    process.kill()  # a worker waits for streams that are still open
    wait()


def publish(client: redis.Redis[bytes]) -> None:
    """Publishes lines as they come, until the end of input."""
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 64 << 10):
        *lines, rest = (rest + chunk).split(b"\n")
        with client.pipeline(transaction=False) as pipeline:
            for line in lines:
                pipeline.publish(CHANNEL, line)
            pipeline.execute()


def terminated(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what ends is not to be disturbed
    sys.exit(0)


def main() -> None:
    if shutil.which("redis-server") is None:
        sys.exit(MISSING.format("redis-server"))
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    signal.signal(signal.SIGTERM, terminated)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="fastapi-peer-"))
        redis_socket = os.path.join(directory, "redis.sock")
        server = subprocess.Popen(
            # Without the limit's zeros, Redis would hang up on a worker that is far behind.
            ["redis-server", "--port", "0", "--unixsocket", redis_socket, "--dir", directory, "--save", "",
             "--appendonly", "no", "--client-output-buffer-limit", "pubsub 0 0 0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent,
        )
        stack.callback(end, server)
        while not os.path.exists(redis_socket):
            if server.poll() is not None:
                sys.exit(f"fastapi: redis-server ended with status {server.returncode}")
            time.sleep(0.01)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        reader, writer = os.pipe()
        for _ in range(WORKERS):
            worker = multiprocessing.get_context("fork").Process(target=serve, args=(listener, redis_socket, writer))
            worker.start()
            stack.callback(end, worker)
        os.close(writer)
        for _ in range(WORKERS):
            if not os.read(reader, 1):
                sys.exit("fastapi: a worker did not start")
        print("%s:%d" % listener.getsockname(), flush=True)
        publish(redis.Redis(unix_socket_path=redis_socket))


if __name__ == "__main__":
    main()
