"""User and password: read where the settings say, at each login anew, and kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from infra.vsphere.errors import MissingSecret
from infra.vsphere.settings import VCenterSettings

HIDDEN = "***"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user and a password that no repr shows."""

    user: str
    password: str = field(repr=False)

    def hide(self, text: str) -> str:
        """``text`` without the password, as it is and as XML or Python would write it."""
        forms = {self.password, escape(self.password), repr(self.password)[1:-1]}
        forms |= {escape(self.password, {'"': "&quot;", "'": "&apos;"})}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, HIDDEN)
        return text


def account(settings: VCenterSettings, environ: Mapping[str, str]) -> str:
    """As whom to log in; empty where the settings' variable is not set."""
    return environ.get(settings.user_env, "").strip()


def read_credentials(settings: VCenterSettings, environ: Mapping[str, str]) -> Credentials:
    """Return user and password. Raises MissingSecret, which names the place and not the value."""
    user = account(settings, environ)
    if not user:
        raise MissingSecret(
            f"no user for vCenter {settings.address}: the environment variable "
            f"{settings.user_env} is not set (for example reader@vsphere.local)"
        )
    if settings.password_file:
        return Credentials(user=user, password=_from_file(settings))
    password = environ.get(settings.password_env, "")
    if not password:
        raise MissingSecret(
            f"no password for vCenter {settings.address}: the environment variable "
            f"{settings.password_env} is not set; set it, or name a file with "
            "vcenter.password_file"
        )
    return Credentials(user=user, password=password)


def _from_file(settings: VCenterSettings) -> str:
    path = Path(settings.password_file).expanduser()
    refused = f"no password for vCenter {settings.address}: vcenter.password_file {path}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingSecret(f"{refused} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError:
        text = ""
        problem = "is not UTF-8 text"
    else:
        problem = "is empty"
    password = text.removesuffix("\n").removesuffix("\r")  # what an editor adds; blanks may count
    if not password:
        raise MissingSecret(f"{refused} {problem}")
    if "\n" in password:
        raise MissingSecret(f"{refused} has several lines; it must hold the password alone")
    return password
