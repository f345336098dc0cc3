"""Where the vCenter is and how to trust it. Never a secret: only the names of the places of one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SHA256_HEX_DIGITS = 64
HOST = re.compile(r"[\w.-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?\]?")
"""A name or IPv4 address, or an IPv6 address (at least two colons), in brackets or bare."""


@dataclass(frozen=True, kw_only=True)
class VCenterSettings:
    """One vCenter. Without one there is None in its place, never an empty host.

    Raises ValueError for a value that cannot be, with the way out.
    """

    host: str
    """Name or address, without scheme and port."""
    port: int = 443
    user_env: str = "STAGESCOPE_VCENTER_USER"
    """Environment variable with the user, for example reader@vsphere.local."""
    password_env: str = "STAGESCOPE_VCENTER_PASSWORD"  # noqa: S105 - the name of a variable
    password_file: str = ""
    """File with the password; it goes before ``password_env``."""
    ca_file: str = ""
    """PEM with the CA that signed the server's certificate; empty: those of the system."""
    thumbprint: str = ""
    """SHA-256 of the server's certificate, hex, colons allowed: trusts this one and no other."""
    insecure: bool = False
    """No verification at all: whoever sits between can read the password."""
    timeout_s: float = 30.0
    """Longest wait for the server: for a connection, and each time for its next bytes. A whole
    answer may take four times as long."""
    query_period_s: float = 300.0
    """Between two query rounds of a run."""
    backfill_deadline_s: float = 120.0
    """How long the end of a run waits for late samples."""
    vm: str = ""
    """UUID or name of this VM, where its DMI UUID is not to be believed."""
    other_vms: tuple[str, ...] = ()
    """Further VMs of the run, by name or UUID."""
    clock_limit_s: float = 2.0
    """Error of the clocks beyond which nothing of the hypervisor is attributed to a stage."""

    def __post_init__(self) -> None:
        self._check_host()
        self._check_trust()
        for name in ("user_env", "password_env"):
            if not getattr(self, name):
                raise ValueError(f'vcenter.{name} = "": name an environment variable')
        for name in ("timeout_s", "query_period_s", "clock_limit_s"):
            self._check_seconds(name, allow_zero=False)
        self._check_seconds("backfill_deadline_s", allow_zero=True)

    def _check_host(self) -> None:
        if not self.host.strip():
            raise ValueError('vcenter.host = "": give the name or address of the vCenter')
        if not HOST.fullmatch(self.host):
            raise ValueError(
                f"vcenter.host = {self.host!r}: give a bare name or address, without https://, "
                "path or user; the port has its own key, vcenter.port"
            )
        if not 0 < self.port < 65536:
            raise ValueError(f"vcenter.port = {self.port}: give a TCP port, 1 to 65535")

    def _check_trust(self) -> None:
        given = [name for name in ("ca_file", "thumbprint", "insecure") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(
                f"vcenter.{given[0]} and vcenter.{given[1]}: these exclude each other; give a CA "
                "file, or pin the thumbprint, or (never outside of a lab) switch verification off"
            )
        digits = self.thumbprint.replace(":", "")
        if digits and not re.fullmatch(rf"[0-9A-Fa-f]{{{SHA256_HEX_DIGITS}}}", digits):
            raise ValueError(
                f"vcenter.thumbprint = {self.thumbprint!r}: give the certificate's SHA-256, "
                f"{SHA256_HEX_DIGITS} hex digits (openssl x509 -noout -fingerprint -sha256); "
                "SHA-1 can be forged"
            )

    def _check_seconds(self, name: str, *, allow_zero: bool) -> None:
        value = getattr(self, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and not allow_zero):
            least = "0 or more" if allow_zero else "above 0"
            raise ValueError(f"vcenter.{name} = {value}: give seconds, {least}")

    @property
    def address(self) -> str:
        """Host and port as people write them."""
        bare = self.host.strip("[]")
        shown = f"[{bare}]" if ":" in bare else bare
        return shown if self.port == 443 else f"{shown}:{self.port}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "other_vms": list(self.other_vms)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> VCenterSettings:
        return cls(**{**fields, "other_vms": tuple(fields.get("other_vms", ()))})
