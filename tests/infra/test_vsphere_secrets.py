"""The password is nowhere: not in an error, its traceback, its frames, a repr or a log."""

from __future__ import annotations

import logging
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from infra.vsphere.errors import (
    MissingSecret,
    VCenterError,
    VCenterRefused,
    VCenterUnreachable,
    VCenterUntrusted,
)
from infra.vsphere.secrets import Credentials, read_credentials
from infra.vsphere.session import VCenter
from infra.vsphere.settings import VCenterSettings
from tests.infra import between as spoil
from tests.infra.between import Between
from tests.vcsim_server import USER, Vcsim

SECRET = "p<a>s&s\"w'ord-zq5f1dxw\\ö"
FORMS = ("zq5f1dxw",)
"""Enough to find it in any form, escaped for XML, Python or JSON as it may be.

It is no hexadecimal number, so no object's address has it.
"""
ENVIRON = {"STAGESCOPE_VCENTER_USER": USER, "STAGESCOPE_VCENTER_PASSWORD": SECRET}


def error_of(make: Callable[[], object]) -> VCenterError:
    """What ``make`` raises. A frame of its own, so that no local of a test is in the traceback."""
    try:
        make()
    except VCenterError as error:
        return error
    raise AssertionError("nothing was raised")


def everything(error: BaseException) -> Iterator[str]:
    """All text that an error can leave anywhere."""
    yield from traceback.format_exception(error)
    yield from traceback.TracebackException.from_exception(error, capture_locals=True).format()
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield f"{one} {one!r} {one.args} {vars(one)} {getattr(one, '__notes__', '')}"
        chain += [one.__cause__, one.__context__]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            yield from _locals(frame)


def _locals(frame: FrameType) -> Iterator[str]:
    if frame.f_code.co_name == "error_of":
        return
    for name, value in frame.f_locals.items():
        yield f"{name} = {value!r} {getattr(value, '__dict__', '')!r}"


def assert_no_secret(texts: Iterator[str]) -> None:
    for text in texts:
        for form in FORMS:
            assert form not in text, text[:2000]


def _no_user(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    return vcsim.settings(), {"STAGESCOPE_VCENTER_PASSWORD": SECRET}


def _no_file(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    return vcsim.settings(password_file=str(folder / "none")), ENVIRON


def _several_lines(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    (folder / "password").write_text(f"{SECRET}\n{SECRET}\n")
    return vcsim.settings(password_file=str(folder / "password")), ENVIRON


def _wrong(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    return vcsim.settings(), ENVIRON


def _wrong_from_file(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    (folder / "password").write_text(f"{SECRET}\n")
    user = {"STAGESCOPE_VCENTER_USER": USER}
    return vcsim.settings(password_file=str(folder / "password")), user


def _untrusted(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    return vcsim.settings(ca_file=""), ENVIRON


def _wrong_pin(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    return vcsim.settings(thumbprint="ab" * 32), ENVIRON


def _refused(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    return vcsim.settings(port=port), ENVIRON


def _mute(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return vcsim.settings(port=listening.getsockname()[1], timeout_s=0.2), ENVIRON


def _spoiled(how: spoil.Spoil) -> Callable[..., tuple[Any, Any]]:
    def make(vcsim: Vcsim, stack: ExitStack, folder: Path) -> tuple[Any, Any]:
        between = stack.enter_context(Between(vcsim))
        between.spoil["Login"] = how
        return vcsim.settings(port=between.port, timeout_s=0.5), ENVIRON

    return make


Case = Callable[[Vcsim, ExitStack, Path], tuple[VCenterSettings, Mapping[str, str]]]
FAILURES: dict[str, tuple[Case, type[VCenterError]]] = {
    "no user": (_no_user, MissingSecret),
    "no password file": (_no_file, MissingSecret),
    "a password file of several lines": (_several_lines, MissingSecret),
    "wrong password": (_wrong, VCenterRefused),
    "wrong password from a file": (_wrong_from_file, VCenterRefused),
    "unknown certificate": (_untrusted, VCenterUntrusted),
    "another certificate than the pinned": (_wrong_pin, VCenterUntrusted),
    "nobody listens": (_refused, VCenterUnreachable),
    "nobody answers": (_mute, VCenterUnreachable),
    "login hangs": (_spoiled(spoil.hang), VCenterUnreachable),
    "login is dropped": (_spoiled(spoil.drop), VCenterUnreachable),
    "login gives a web page": (_spoiled(spoil.html), VCenterUnreachable),
    "login gives nonsense": (_spoiled(spoil.nonsense), VCenterUnreachable),
    "login is quoted in an HTTP error": (_spoiled(spoil.echo_reason), VCenterUnreachable),
    "login is quoted in a fault": (_spoiled(spoil.echo_fault), VCenterRefused),
    "no permission": (_spoiled(spoil.fault("NoPermissionFault")), VCenterRefused),
}


@pytest.mark.needs("go")
@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_of_opening_shows_it(
    name: str,
    vcsim: Vcsim,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    make, kind = FAILURES[name]
    with ExitStack() as stack:
        settings, environ = make(vcsim, stack, tmp_path)
        vcenter = VCenter(settings, environ=_Environ(environ))
        error = error_of(vcenter.open)
        assert type(error) is kind
        assert error.__context__ is None or kind is not VCenterRefused
        assert_no_secret(everything(error))
        vcenter.close()
    printed = capfd.readouterr()
    assert_no_secret(iter([repr(vcenter), caplog.text, printed.out, printed.err, vcsim.log]))
    assert vcsim.counts["sessions"] == 0


class _Environ(dict[str, str]):
    """An environment; ``os.environ`` would show the password in its own repr, whoever holds it."""

    def __repr__(self) -> str:
        return "environ"


@pytest.mark.needs("go")
def test_a_session_that_cannot_be_renewed_does_not_show_it(own_vcsim: Vcsim) -> None:
    environ = _Environ(ENVIRON)
    own_vcsim.control(users={USER: {"password": SECRET}})
    vcenter = VCenter(own_vcsim.settings(), environ=environ)
    with vcenter:
        own_vcsim.control(users={USER: {"password": "changed"}}, expire_sessions=True)
        error = error_of(lambda: vcenter.call(vcenter.service.CurrentTime))
        assert isinstance(error, VCenterRefused)
        assert_no_secret(everything(error))


@pytest.mark.needs("go")
def test_the_files_of_a_session_hold_no_secret(vcsim: Vcsim) -> None:
    settings = vcsim.settings()
    vcenter = VCenter(settings, environ=_Environ(vcsim.environ()))
    with vcenter:
        vcenter.call(vcenter.service.CurrentTime)
        assert vcsim.password not in f"{settings} {settings.to_json()} {vars(vcenter)}"


def test_credentials_hide_the_password_in_every_form() -> None:
    credentials = Credentials(user="u", password=SECRET)
    assert SECRET not in f"{credentials} {credentials!r}"
    for form in ("p&lt;a&gt;s&amp;s\"w'ord-zq5f1dxw\\ö", SECRET, repr(SECRET)):
        assert "zq5f1dxw" not in credentials.hide(f"got {form}, sorry")


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" s p \n", " s p "),
        (b"x", "x"),
        (b"\xef\xbb\xbfsecret\r\n", "secret"),
    ],
)
def test_a_password_file_may_end_with_a_newline(
    content: bytes, password: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_bytes(content)
    settings = VCenterSettings(host="vc", password_file=str(tmp_path / "password"))
    assert read_credentials(settings, {settings.user_env: "u"}).password == password


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\n", "is empty"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_password_file_of_no_use_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    settings = VCenterSettings(host="vc", password_file=str(path))
    with pytest.raises(MissingSecret, match=said) as raised:
        read_credentials(settings, {settings.user_env: "u"})
    assert str(path) in str(raised.value)


def test_what_is_not_set_is_named() -> None:
    settings = VCenterSettings(host="vc", user_env="WHO", password_env="WHAT")
    with pytest.raises(MissingSecret, match="WHO"):
        read_credentials(settings, {})
    with pytest.raises(MissingSecret, match="WHAT"):
        read_credentials(settings, {"WHO": "u"})
