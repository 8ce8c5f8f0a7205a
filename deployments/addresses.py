"""Under which addresses the server of `up` is reached, and who else may reach it."""

from __future__ import annotations

import ipaddress
import os
import platform
from urllib.parse import urlsplit

from deployments.console import print_text

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""What makes a server listen at all addresses of a machine, and how it is called from that machine."""


def addresses(host: str, port: int) -> tuple[str, str]:
    """Of the API for processes of this machine, and of the UI for people. A browser gets the API's from the server.

    What listens everywhere (0.0.0.0, ::) is no address to call: here it is 127.0.0.1 or ::1, elsewhere the machine's
    name, which the server hands to browsers (PREFECT_UI_API_URL) unless that is set already.
    """
    if host in EVERYWHERE:
        for_browsers = os.environ.setdefault("PREFECT_UI_API_URL", f"http://{platform.node()}:{port}/api")
        return f"http://{EVERYWHERE[host]}:{port}/api", for_browsers.removesuffix("/api")
    ui = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return f"{ui}/api", ui


def files_addresses(api: str, ui: str, port: int) -> tuple[str, str]:
    """Of the file server, for processes of this machine and for browsers: as the API and the UI, on its own port.

    MUSICGEN_FILES_URL is where a proxy has it.
    """
    return _with_port(api, port), (os.environ.get("MUSICGEN_FILES_URL") or _with_port(ui, port)).rstrip("/")


def _with_port(url: str, port: int) -> str:
    host = urlsplit(url).hostname or "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_of_others(host: str, port: int, files_port: int, has_password: bool) -> None:
    """Say what it means if other machines reach a server that listens at `host`."""
    if not _is_of_this_machine(host):
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


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
