"""The names that a request to this machine may have as its host."""

from __future__ import annotations

import ipaddress
import platform
from collections.abc import Collection
from urllib.parse import urlsplit


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Return whether a request's Host is an IP address, localhost, or one of this machine's names.

    Another site can let its own name resolve to this machine (DNS rebinding), and could then read the responses.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name in names
    return True


def names_of_machine(url: str) -> set[str]:
    """Return the host names, in lower case, that requests may have: this machine's, and the one in the URL."""
    node = platform.node().lower()
    return {node, f"{node.partition('.')[0]}.local", urlsplit(url).hostname or node}
