"""A check that the hub can be reached, because the library itself would try again and again for half a minute."""

from __future__ import annotations

import socket
from functools import lru_cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from keel.errors import InputError, on_one_line

__all__ = ["require_hub"]

TIMEOUT = 5.0
"""Seconds to wait for a connection to the hub."""


@lru_cache
def require_hub(name: str) -> None:
    """Refuse a name that is not in the hub's cache if the hub cannot be asked.

    Behind a proxy this cannot be found out, and nothing is refused.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if try_to_load_from_cache(name, "config.json", cache_dir=constants.HF_HUB_CACHE) is not None:
        return
    url = urlsplit(constants.ENDPOINT)
    host = url.hostname or ""
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    elif url.scheme in getproxies() and not proxy_bypass(host):
        return
    else:
        try:
            port = url.port or (80 if url.scheme == "http" else 443)
            socket.create_connection((host, port), timeout=TIMEOUT).close()
            return
        except OSError as error:
            why = f"{host} cannot be reached: {on_one_line(error)}"
    raise InputError(
        f"{name}: no such folder here, and the hub cannot be asked ({why}); check the path, or the network"
    )
