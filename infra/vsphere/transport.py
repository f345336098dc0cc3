"""What can go wrong on the way to a vCenter, whichever of its interfaces is asked, as sentences."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from xml.parsers.expat import ExpatError

from infra.vsphere import tls
from infra.vsphere.errors import VCenterError, VCenterUnreachable, sentence
from infra.vsphere.settings import VCenterSettings

TRANSPORT = (OSError, HTTPException, ExpatError)


def unreachable(settings: VCenterSettings, error: Exception) -> VCenterError:
    """The error for one of TRANSPORT: not trusted, too slow, not to be reached, or no vCenter."""
    if isinstance(error, tls.WrongThumbprint | ssl.SSLCertVerificationError):
        return tls.untrusted(settings, error)
    where = f"vCenter {settings.address}"
    if isinstance(error, TimeoutError):
        return VCenterUnreachable(
            f"{where} does not answer within {settings.timeout_s:g} s (vcenter.timeout_s)"
        )
    if isinstance(error, ExpatError):
        return VCenterUnreachable(
            f"{where} answers with something that is not SOAP; is it a vCenter?"
        )
    said = sentence(error)
    if isinstance(error, OSError):
        return VCenterUnreachable(f"{where} cannot be reached: {error.strerror or said}")
    return VCenterUnreachable(f"{where} answers: {said}")
