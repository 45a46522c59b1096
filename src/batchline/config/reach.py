"""Who could reach a server, and whether that was meant."""

from __future__ import annotations

import ipaddress

from batchline.config.settings import ServerSettings
from batchline.domain.errors import ConfigError


def check_reach(server: ServerSettings, *, has_keys: bool) -> None:
    """Hold a server that takes everybody to its own machine.

    Raises:
        ConfigError: others could reach it, there are no keys, and nobody said that this is meant.
    """
    if not has_keys and not server.insecure_no_auth and not is_loopback(server.host):
        raise ConfigError(
            f"server.host: {server.host} would let others in, and there are no keys; make one with"
            " `batchline keys create --project NAME`, or listen on 127.0.0.1, ::1 or localhost, or"
            " start with --insecure-no-auth"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
