"""A REST request from its first byte to the last of its answer, within limits.

It is counted, refused where too many are in work, stopped when its client is gone, and whatever goes wrong is told in
one line.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.rest.api import SSE, Answer, Pieces, Refusal, Service, Whole, as_refusal, busy, event

READ_S, SEND_S = 60, 30  # a client that takes longer, for its request or for a piece of the answer, is given up
GONE = 499  # what is counted where nobody waits for the answer any more

Read = Callable[[Request], Awaitable[Any]]
Handle = Callable[[Service, Any], Awaitable[Answer]]


class Work(Response):
    """A response that works out what it says, while it is sent."""

    def __init__(self, service: Service, request: Request, route: str, read: Read, handle: Handle) -> None:
        super().__init__()
        self.service, self.request, self.route = service, request, route
        self.read, self.handle = read, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, status = self.service, GONE
        full = service.in_work >= service.settings.requests
        service.in_work += 1
        try:
            if full:
                service.metrics.refused.labels("requests").inc()
                status = await self._refused(send, busy(f"{service.settings.requests} requests are in work already"))
            else:
                status = await self._worked(receive, send)
        except (ClientDisconnect, TimeoutError, OSError):
            pass  # nobody is there to be told
        finally:
            service.in_work -= 1
            service.metrics.requests.labels(self.route, str(status)).inc()

    async def _worked(self, receive: Receive, send: Send) -> int:
        try:
            given = await asyncio.wait_for(self.read(self.request), READ_S)
        except TimeoutError:
            return await self._refused(send, Refusal(408, f"the request did not come within {READ_S} s: send it again"))
        except ClientDisconnect:
            raise
        except Exception as error:
            return await self._refused(send, as_refusal(error))
        work, gone = asyncio.ensure_future(self._answered(given, send)), asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left = [task for task in (work, gone) if not task.done()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        return GONE if work.cancelled() else work.result()

    async def _answered(self, given: Any, send: Send) -> int:
        try:
            answer = await self.handle(self.service, given)
            if isinstance(answer, Pieces):  # what is wrong shows before the first piece
                first = await anext(answer.content, b"")
        except Exception as error:
            return await self._refused(send, as_refusal(error))
        if isinstance(answer, Whole):
            await _send(send, answer.status, answer.media_type, answer.content)
            return answer.status
        async with contextlib.aclosing(answer.content):
            await _send(send, 200, answer.media_type, first, more=True)
            try:
                async for piece in answer.content:
                    await _send_piece(send, piece)
            except OSError:
                raise  # nobody is there to be told
            except Exception as error:
                refusal = self._counted(as_refusal(error))
                if answer.media_type != SSE:
                    return refusal.status  # without an end, which tells the client that something is missing
                await _send_piece(send, event(refusal.body))
                await _send_piece(send, b"", more=False)
                return refusal.status
            await _send_piece(send, b"", more=False)
        return 200

    async def _refused(self, send: Send, refusal: Refusal) -> int:
        self._counted(refusal)
        await refusal.response()(self.request.scope, self.request.receive, send)
        return refusal.status

    def _counted(self, refusal: Refusal) -> Refusal:
        self.service.metrics.errors.labels(refusal.code or str(refusal.status)).inc()
        return refusal


def endpoint(service: Service, route: str, read: Read, handle: Handle) -> Callable[[Request], Awaitable[Response]]:
    """What FastAPI calls for that route."""

    async def answer(request: Request) -> Response:
        return Work(service, request, route, read, handle)

    return answer


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, status: int, media_type: str, content: bytes, more: bool = False) -> None:
    headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
    if not more:
        headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await _send_piece(send, content, more)


async def _send_piece(send: Send, content: bytes, more: bool = True) -> None:
    message = {"type": "http.response.body", "body": content, "more_body": more}
    await asyncio.wait_for(send(message), SEND_S)
