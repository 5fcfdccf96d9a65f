"""Clients of the service (`python -m research.serve`): `Client`, and `AsyncClient` for asyncio. They need only httpx.

    with Client("http://localhost:8000") as client:
        client.wait_until_ready()
        print(client.predict("bert", ["a gripping, moving film"]))

errors.py     the error that they raise
retries.py    when a request is sent again
requests.py   what is sent, and how answers are read: without I/O
clients.py    sends it, and waits
"""

from research.client.clients import AsyncClient, Client
from research.client.errors import ServiceError
from research.client.requests import Prediction

__all__ = ["AsyncClient", "Client", "Prediction", "ServiceError"]
