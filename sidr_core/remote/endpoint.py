"""Clients of OpenAI-compatible servers, and what happens to their key.

The key is read from the environment when a client is made and is given to the SDK alone: it enters no setting,
manifest, ledger or message. It never travels in clear text: `http://` is for loopback, or for servers without a key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sidr_core.remote.errors import EndpointError
from sidr_core.render.text import printable
from sidr_core.settings.base import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_HOST = "api.openai.com"
#: Bytes of a reply to one request, many times what a teacher's text takes.
MOST_REPLY_BYTES = 8 * 2**20
#: Sent where no key is set: the SDK wants one, local servers ignore it.
PLACEHOLDER = "no-key"
_KEY_SHAPES = re.compile(r"(sk-|Bearer\s+)[A-Za-z0-9_\-*.]+")


def host_of(endpoint: Endpoint) -> str:
    """Host name of the server in lower case, without port."""
    return (urlsplit(endpoint.base_url).hostname or "").lower()


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_openai_client(endpoint: Endpoint, most_bytes: int = MOST_REPLY_BYTES) -> AsyncOpenAI:
    """An async client with the SDK's own retries off and replies of at most `most_bytes`, to be used with `async with`.

    Raises:
        EndpointError: the key is missing where one is needed, is malformed, or would travel in clear text.
    """
    from openai import AsyncOpenAI

    from sidr_core.remote.transport import BoundedClient

    key = read_key(endpoint)
    timeout = endpoint.timeout_seconds
    # A proxy from the environment must not stand between us and our own machine.
    http = BoundedClient(most_bytes, trust_env=not is_loopback(host_of(endpoint)), timeout=timeout)
    return AsyncOpenAI(api_key=key, base_url=endpoint.base_url, max_retries=0, timeout=timeout, http_client=http)


def read_key(endpoint: Endpoint) -> str:
    """The key to send, or a placeholder. Raises EndpointError as :func:`make_openai_client` says."""
    host, name = host_of(endpoint), endpoint.api_key_env
    key = os.environ.get(name, "").strip()
    if not key:
        if host == OPENAI_HOST:
            raise EndpointError(
                f"no key for {host}",
                expected=f"the key in the environment variable {name}",
                found="not set, or empty",
                fix=f"export {name}=…   (or name another server in `endpoint.base_url`)",
            )
        return PLACEHOLDER
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise EndpointError(
            f"the key in {name} cannot be sent",
            expected="printable ASCII without blanks",
            found="other characters",
            fix="set it again; a line break or a quote was probably copied along",
        )
    if urlsplit(endpoint.base_url).scheme == "http" and not is_loopback(host):
        raise EndpointError(
            f"the key in {name} would travel to {host} in clear text",
            expected="https://, or a server on this machine",
            found="http://",
            fix="use https or a tunnel to 127.0.0.1; if the server needs no key, set `endpoint.api_key_env` to a "
            "variable that is not set",
        )
    return key


def redact(text: str, endpoint: Endpoint, longest: int = 300) -> str:
    """What a server said, as one printable line without keys, of at most `longest` characters."""
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if key:
        text = text.replace(key, "[key]")
    text = " ".join(printable(_KEY_SHAPES.sub("[key]", text)).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
