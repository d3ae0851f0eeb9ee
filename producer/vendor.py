"""Holds on uvicorn, h11, FastAPI and asyncio, and on what the relay takes of Celery and py-amqp.

The rules are those of `workers/vendor/`. `Connection` (`api/server/connections.py`) overrides and
uses undocumented methods of uvicorn's protocol; `BodyRoute` (`api/bodies.py`) validates by
FastAPI's field of a body and walks the tree of a handler's dependencies; `relay/publisher.py`
builds messages as Celery's `send_task` does and reads the confirms of py-amqp's channel.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

READ_IN = {
    "uvicorn": "0.54.0",
    "h11": "0.16.0",
    "fastapi": "0.165.0",
    "celery": "5.7.0",
    "amqp": "5.4.2",
}
HOLDS = {
    "uvicorn.protocols.http.h11_impl:H11Protocol": "4a05471953e6",
    "uvicorn.protocols.http.h11_impl:RequestResponseCycle": "73f2b35f629f",
    "uvicorn.protocols.http.flow_control:FlowControl": "e828d6beccde",
    "uvicorn.server:Server.startup": "9a8e644a2680",
    "uvicorn.server:Server.shutdown": "0b07e47a35d7",
    "uvicorn.server:Server.on_tick": "e61b11660730",
    "uvicorn.server:Server.handle_exit": "35e5b7e7cda2",
    "h11._connection:Connection.next_event": "7f2e468cdc84",
    "h11._connection:Connection.trailing_data": "5b4359209de7",
    "fastapi._compat.v2:ModelField.validate": "45145b040600",
    "fastapi.dependencies.models:Dependant": "53ccd294094f",
    "fastapi.routing:get_request_handler": "905a02f19fba",
    "celery.app.amqp:AMQP.as_task_v2": "7c5260c10ab4",
    "celery.utils.nodenames:anon_nodename": "dd86d9758e3d",
    "amqp.channel:Channel.confirm_select": "f8c32ee9121f",
    "amqp.channel:Channel._on_basic_ack": "6223f680d19f",
    "amqp.channel:Channel._on_basic_nack": "f37b57d44de9",
}


class HTTPProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection, without upgrades to other protocols."""

    def stop_idle_timer(self) -> None:
        """Cancel uvicorn's timer for the next request of a connection that is kept alive."""
        self._unset_keepalive_if_required()

    def _should_upgrade(self) -> bool:
        """Answer a request for another protocol in this one, as HTTP lets servers do."""
        return False


def read_at_most(transport: asyncio.Transport, size: int) -> None:
    """Bound the bytes that asyncio reads from a socket at a time."""
    if hasattr(transport, "max_size"):
        transport.max_size = size
