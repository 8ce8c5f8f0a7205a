"""Addresses of `up`'s server, and a warning if other machines can reach it."""

from __future__ import annotations

import ipaddress
import os
import platform
from urllib.parse import urlsplit

from deployments.console import print_text

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Wildcard addresses of a server, and the address under which processes of the same machine reach it."""


def addresses(host: str, port: int) -> tuple[str, str]:
    """Return the URLs of the API (for processes of this machine) and of the UI. Browsers get the API's from the server.

    A wildcard address (0.0.0.0, ::) can't be called. Processes of this machine use 127.0.0.1 or ::1 instead. Browsers
    use the machine's name, which the server passes to them (PREFECT_UI_API_URL) unless that is set already.
    """
    if host in EVERYWHERE:
        for_browsers = os.environ.setdefault("PREFECT_UI_API_URL", f"http://{platform.node()}:{port}/api")
        return f"http://{EVERYWHERE[host]}:{port}/api", for_browsers.removesuffix("/api")
    ui = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return f"{ui}/api", ui


def files_addresses(api: str, ui: str, port: int) -> tuple[str, str]:
    """Return the file server's URLs for processes of this machine and for browsers: API's and UI's, on its own port.

    MUSICGEN_FILES_URL is its URL behind a proxy.
    """
    return _with_port(api, port), (os.environ.get("MUSICGEN_FILES_URL") or _with_port(ui, port)).rstrip("/")


def _with_port(url: str, port: int) -> str:
    host = urlsplit(url).hostname or "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_of_others(host: str, port: int, files_port: int, has_password: bool) -> None:
    """Warn if other machines can reach a server that listens at `host`, and print the consequences."""
    if not is_of_this_machine(host):
        safer = (
            "Safer: up without --host, and elsewhere "
            f"ssh -L {port}:127.0.0.1:{port} -L {files_port}:127.0.0.1:{files_port} {platform.node()}. "
        )
        risk = (
            f"Without a password, whoever reaches port {port} of this machine can run programs on it, and whoever "
            f"reaches port {files_port} can read tokens, runs and music. {safer}"
            "A server with a password: deployments/team/README.md"
        )
        encryption = (
            f"Ports {port} and {files_port} ask for the password, but over HTTP: who can read the network's traffic "
            f"reads it. {safer}Encrypted: deployments/team/README.md"
        )
        print_text(encryption if has_password else risk, "yellow")


def is_of_this_machine(host: str) -> bool:
    """Return whether only this machine reaches a server that listens at an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
