"""How a server behaves: where it listens, and what bounds it."""

import re
from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from lushan.settings import Settings

MOST_UPLOAD_BYTES = 200 * 2**20
"""Largest file that a visitor brings to the page; it goes to disk while it comes, and never into memory."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_OWN_PORTS = {"http": ":80", "https": ":443"}
"""Ports that browsers leave out."""


def _read_origin(given: str) -> str:
    """Write an origin as browsers do, which are compared letter by letter."""
    origin = given.lower().removesuffix("/")
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        raise PydanticCustomError(
            "origin",
            "Expected `scheme://host` or `scheme://host:port` of a page, without a path; `*` would let any page ask",
        )
    return origin.removesuffix(_OWN_PORTS.get(found[1], ""))


def _read_network(given: str) -> str:
    """Write an address as the network that holds it alone, or a network as it is."""
    try:
        return str(ip_network(given, strict=False))
    except ValueError:
        raise PydanticCustomError(
            "network", "Expected an IP address, or a network such as 10.0.0.0/8"
        ) from None


class AccessSettings(Settings):
    """Who may ask, and who passes on what others ask."""

    require_keys: bool = False
    """Whether this machine too has to bring API keys; behind a proxy all the world seems to be this machine."""

    trusted_proxies: tuple[Annotated[str, AfterValidator(_read_network)], ...] = Field(
        default=(), strict=False
    )
    """Addresses, or networks, of proxies that are believed when they say whose requests they pass on."""


class ServeSettings(Settings):
    """Where a server listens, and what bounds it."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; beyond this machine only with API keys."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    cors_origins: tuple[Annotated[str, AfterValidator(_read_origin)], ...] = Field(
        default=(), strict=False
    )
    """Pages of other origins that a browser may let ask, such as `https://example.org`."""

    max_rows: int = Field(default=32, ge=1)
    """Answers that a model writes at once; bounds memory, changes no answer."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens that a model remembers of these, each counted as long as the longest can become; bounds memory. What they
    leave of it, an eighth at least, holds earlier texts, whose starts are not read again. None takes 65,536, or fewer where
    they would take more than a share of the free memory."""

    max_model_gigabytes: float | None = Field(default=None, gt=0)
    """Most memory that the weights of models may take together; None sets no limit."""

    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait; one more is sent away with 503."""

    max_body_bytes: int = Field(default=4_000_000, ge=1_000)
    """Largest body of a request; a file that is brought to the page may have 200 MB."""

    deadline_seconds: float = Field(default=300.0, gt=0)
    """Longest time from a request to the end of its answer."""

    grace_seconds: float = Field(default=30.0, ge=0)
    """How long a server that is told to stop lets running requests finish."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests of one client address a minute; None sets no limit."""

    log_texts: bool = False
    """Whether the log holds what was asked and answered."""

    access_settings: AccessSettings = AccessSettings()
    """Who has to bring keys, and who passes requests on."""

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK

    @property
    def asks_for_keys(self) -> bool:
        """Whether requests have to bring API keys."""
        return self.access_settings.require_keys or not self.is_on_loopback
