"""Addresses that hold a user and a password, and what of them may be shown or kept."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
USERINFO = re.compile(
    r"(?<=://)(?:[^\s/?#]*@"
    r"|[^\s/:@\[]*:(?!\d*[/?#])\S*@)"  # a password with / ? or #; after a port they begin a path
)
"""User and password in front of a host, with the ``@``, up to the last one that can be meant."""
_OPTION = re.compile(r"(?<=[?&])((?:ssl)?(?:user|username|password|passwd|pwd|token)=)[^\s&#'\"]+")


def masked(text: str) -> str:
    """The text with each address in it as ``postgresql://***@db.corp/mlflow``."""
    return _OPTION.sub(rf"\g<1>{HIDDEN}", USERINFO.sub(f"{HIDDEN}@", text))


def without_secrets(text: str, uri: str) -> str:
    """``masked``, and without the password of ``uri`` where it stands alone."""
    text = masked(text)
    for secret in sorted(_passwords(uri), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _passwords(uri: str) -> set[str]:
    """The password of an address, as it is written there and as it is meant."""
    found = USERINFO.search(uri)
    told = [found[0][:-1].partition(":")[2]] if found else []
    told += [one[0].partition("=")[2] for one in _OPTION.finditer(uri) if "user" not in one[1]]
    return {form for one in told for form in (one, unquote(one), repr(unquote(one))[1:-1]) if form}
