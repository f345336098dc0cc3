"""Settings of a vCenter: what can be, what cannot, and that they survive JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from infra.vsphere.settings import VCenterSettings
from infra.vsphere.tls import state

PIN = "AB:" * 31 + "cd"


def test_survive_json() -> None:
    settings = VCenterSettings(host="vc", port=8443, thumbprint=PIN, other_vms=("a", "b"))
    again = VCenterSettings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings


def test_defaults_verify_and_name_no_secret() -> None:
    settings = VCenterSettings(host="vc")
    assert not settings.insecure
    assert state(settings) == "verified"
    assert not [one.name for one in fields(settings) if one.name in {"user", "password"}]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"host": ""}, "name or address"),
        ({"host": "https://vc/sdk"}, "bare name"),
        ({"host": "vc:8443"}, "vcenter.port"),
        ({"host": "root@vc"}, "bare name"),
        ({"port": 0}, "TCP port"),
        ({"user_env": ""}, "environment variable"),
        ({"thumbprint": "ab" * 20}, "SHA-1 can be forged"),
        ({"thumbprint": PIN, "insecure": True}, "exclude each other"),
        ({"thumbprint": PIN, "ca_file": "ca.pem"}, "exclude each other"),
        ({"ca_file": "ca.pem", "insecure": True}, "exclude each other"),
        ({"timeout_s": 0}, "above 0"),
        ({"timeout_s": float("nan")}, "above 0"),
        ({"query_period_s": -1}, "above 0"),
        ({"backfill_deadline_s": -1}, "0 or more"),
        ({"clock_limit_s": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_is_said_with_the_way_out(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        VCenterSettings(**{"host": "vc", **wrong})
    assert f"vcenter.{next(iter(wrong))}" in str(raised.value)


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("vc.example", 443, "vc.example"),
        ("vc.example", 8443, "vc.example:8443"),
        ("10.0.0.1", 443, "10.0.0.1"),
        ("fe80::1", 443, "[fe80::1]"),
        ("[::1]", 8443, "[::1]:8443"),
    ],
)
def test_an_address_is_written_as_people_do(host: str, port: int, address: str) -> None:
    assert VCenterSettings(host=host, port=port).address == address
