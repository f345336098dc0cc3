"""A REST session with the simulated vCenter: trust, time-outs, renewal, no secret, nothing left."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.vsphere.errors import (
    MissingSecret,
    VCenterError,
    VCenterRefused,
    VCenterUnreachable,
    VCenterUntrusted,
)
from infra.vsphere.rest import SESSION, RestRefused, RestSession, messages
from tests.infra import between as spoil
from tests.infra.between import Between, Handler
from tests.infra.test_vsphere_secrets import ENVIRON, SECRET, assert_no_secret, error_of, everything
from tests.vcsim_server import USER, Vcsim

pytestmark = pytest.mark.needs("go")

LIBRARIES = "/com/vmware/content/library"
LOGIN = f"/rest{SESSION}"
TOKEN = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()


def client(vcsim: Vcsim, **settings: Any) -> RestSession:
    return RestSession(vcsim.settings(**settings), environ=vcsim.environ())


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < limit_s


def test_opens_asks_and_leaves_nothing(own_vcsim: Vcsim) -> None:
    own_vcsim.control(libraries=[{"name": "templates"}])
    with client(own_vcsim) as rest:
        (ident,) = rest.get(LIBRARIES)
        assert rest.get(f"{LIBRARIES}/id:{ident}")["name"] == "templates"
        assert rest.post(LIBRARIES, {"spec": {"name": "templates"}}, action="find") == [ident]
        assert rest.post(LIBRARIES, {"spec": {"name": "others"}}, action="find") is None
        assert own_vcsim.counts["rest_sessions"] == 1
    assert own_vcsim.counts["rest_sessions"] == 0
    assert own_vcsim.counts["rest_logouts"] == 1


def test_leaves_nothing_after_an_error_either(vcsim: Vcsim) -> None:
    with pytest.raises(ZeroDivisionError), client(vcsim):
        raise ZeroDivisionError
    assert vcsim.counts["rest_sessions"] == 0


def test_a_closed_session_says_so_and_opens_no_other(vcsim: Vcsim) -> None:
    rest = client(vcsim)
    for _ in range(2):
        rest.open()
        rest.close()
        rest.close()
    with pytest.raises(VCenterUnreachable, match="is closed"):
        rest.get(LIBRARIES)
    assert (vcsim.counts["rest_sessions"], vcsim.counts["rest_logins"]) == (0, 2)


# --- trust


def test_the_same_trust_as_for_soap(vcsim: Vcsim) -> None:
    with pytest.raises(VCenterUntrusted, match="is not verified"):
        client(vcsim, ca_file="").open()
    with pytest.raises(VCenterUntrusted, match="another certificate than the pinned"):
        client(vcsim, thumbprint="ab" * 32).open()
    with pytest.raises(VCenterUntrusted, match="cannot be used"):
        client(vcsim, ca_file="/nowhere/ca.pem").open()
    assert vcsim.counts.get("rest_calls", 0) == 0
    for settings in ({"thumbprint": vcsim.thumbprint}, {"insecure": True}):
        with client(vcsim, **settings) as rest:
            assert rest.get(LIBRARIES) is None


def test_the_pin_holds_for_each_connection(vcsim: Vcsim, own_vcsim: Vcsim) -> None:
    with client(vcsim, thumbprint=vcsim.thumbprint) as rest:
        own = rest.settings
        rest.settings = own_vcsim.settings(thumbprint=vcsim.thumbprint)
        with pytest.raises(VCenterUntrusted, match="another certificate"):
            rest.get(LIBRARIES)
        rest.settings = own
    assert own_vcsim.counts.get("rest_calls", 0) == 0


# --- time-outs, and what is no vCenter


@pytest.mark.parametrize("path", [LOGIN, f"/rest{LIBRARIES}"])
def test_each_question_has_its_time_out(vcsim: Vcsim, path: str) -> None:
    def hang(handler: Handler, body: bytes) -> bool:
        return handler.command != "DELETE" and spoil.hang(handler, body)

    with Between(vcsim) as between, within(5):
        between.spoil[path] = hang
        late = pytest.raises(VCenterUnreachable, match=r"within 0\.3 s")
        with late, client(vcsim, port=between.port, timeout_s=0.3) as rest:
            rest.get(LIBRARIES)
    assert vcsim.counts["rest_sessions"] == 0


def test_one_that_takes_its_time_has_its_own_limit(vcsim: Vcsim) -> None:
    with client(vcsim, timeout_s=0.5) as rest:
        vcsim.control(delay_s=1.0)
        with pytest.raises(VCenterUnreachable, match=r"within 0\.5 s"):
            rest.get(LIBRARIES)
        assert rest.post(LIBRARIES, {"spec": {}}, action="find", limit_s=5) is None
        vcsim.control(delay_s=0.0)


def test_closing_does_not_wait_for_a_server_that_hangs(vcsim: Vcsim) -> None:
    with Between(vcsim) as between:
        rest = client(vcsim, port=between.port)
        rest.open()
        between.spoil[LOGIN] = spoil.hang
        with within(1.5):
            rest.close(limit_s=0.3)
    vcsim.control(expire_sessions=True)


def test_what_has_no_rest_interface_is_said_to_have_none(vcsim: Vcsim) -> None:
    with Between(vcsim) as between:
        rest = client(vcsim, port=between.port)
        for how, said in (
            (spoil.html, "not REST"),
            (spoil.missing, "6.5 to 8 have it"),
            (lambda handler, _: handler.answer(200, b'{"value":{}}') or True, "without a session"),
            (lambda handler, _: handler.answer(503, b"") or True, "503"),
            (spoil.drop, "closed connection"),
        ):
            between.spoil[LOGIN] = how
            with pytest.raises(VCenterError, match=said):
                rest.open()


def test_a_refusal_is_told_with_the_servers_words(own_vcsim: Vcsim) -> None:
    with client(own_vcsim) as rest:
        with pytest.raises(RestRefused, match="404"):
            rest.get(f"{LIBRARIES}/id:none")
        with pytest.raises(RestRefused, match="no VM template in this item") as raised:
            rest.get("/vcenter/vm-template/library-items/none")
        assert raised.value.kind == "not_found"
        own_vcsim.control(outages=[{"mode": "503"}])
        with pytest.raises(VCenterUnreachable, match="503"):
            rest.get(LIBRARIES)
        own_vcsim.control(outages=[])


def test_messages_are_found_wherever_they_are() -> None:
    error = {"errors": [{"issues": [{"message": {"default_message": "no  such\ndisk"}}]}, {}, None]}
    twice = {"error": {"messages": [{"default_message": "no such disk"}, {"id": "x"}]}}
    assert messages([error, twice]) == ["no such disk"]
    assert messages(None) == []


# --- renewal


def test_logs_in_again_when_the_session_is_gone(vcsim: Vcsim) -> None:
    with client(vcsim) as rest:
        vcsim.control(expire_sessions=True)
        assert rest.get(LIBRARIES) is None
        assert vcsim.counts["rest_logins"] == 2
    assert vcsim.counts["rest_sessions"] == 0


def test_threads_renew_a_session_once(vcsim: Vcsim) -> None:
    with client(vcsim) as rest:
        vcsim.control(expire_sessions=True, delay_s=0.1)
        threads = [threading.Thread(target=rest.get, args=(LIBRARIES,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        vcsim.control(delay_s=0.0)
        assert vcsim.counts["rest_logins"] == 2
    assert vcsim.counts["rest_sessions"] == 0


def test_a_session_that_is_closed_while_a_thread_renews_it_leaves_none(vcsim: Vcsim) -> None:
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            rest.get(LIBRARIES)
        except VCenterUnreachable as error:
            failed.append(error)

    rest = client(vcsim)
    rest.open()
    vcsim.control(expire_sessions=True, delay_s=0.3)
    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.45)  # it has heard that the session is gone, and logs in
    rest.close()
    thread.join()
    vcsim.control(delay_s=0.0)
    assert len(failed) == 1
    assert (vcsim.counts["rest_sessions"], vcsim.counts["rest_logins"]) == (0, 2)


# --- the password is nowhere


def _quoted(status: int) -> spoil.Spoil:
    """An error that quotes what the client sent, plain and as it came."""

    def answer(handler: Handler, body: bytes) -> bool:
        sent = handler.headers["Authorization"]
        plain = base64.b64decode(sent.split()[1]).decode()
        told = {"messages": [{"default_message": f"cannot read {sent}, {plain}"}]}
        error = {"type": "com.vmware.vapi.std.errors.unauthorized", "value": told}
        handler.answer(status, json.dumps(error).encode(), reason=f"cannot read {sent}")
        return True

    return answer


def _plainly(status: int) -> spoil.Spoil:
    def answer(handler: Handler, body: bytes) -> bool:
        handler.answer(status, b"", reason=f"cannot read {handler.headers['Authorization']}")
        return True

    return answer


FAILURES: dict[str, tuple[spoil.Spoil | None, dict[str, Any], type[VCenterError]]] = {
    "wrong password": (None, {}, VCenterRefused),
    "unknown certificate": (None, {"ca_file": ""}, VCenterUntrusted),
    "another certificate than the pinned": (None, {"thumbprint": "ab" * 32}, VCenterUntrusted),
    "no password file": (None, {"password_file": "/nowhere/password"}, MissingSecret),
    "hangs": (spoil.hang, {"timeout_s": 0.3}, VCenterUnreachable),
    "is dropped": (spoil.drop, {}, VCenterUnreachable),
    "gives a web page": (spoil.html, {}, VCenterUnreachable),
    "is not there": (spoil.missing, {}, VCenterRefused),
    "is quoted in a refusal": (_quoted(403), {}, VCenterRefused),
    "is quoted in a failure": (_quoted(500), {}, VCenterRefused),
    "is quoted in an HTTP error": (_plainly(503), {}, VCenterUnreachable),
    "is quoted in an HTTP refusal": (_plainly(400), {}, VCenterRefused),
}


class _Environ(dict[str, str]):
    def __repr__(self) -> str:
        return "environ"


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_of_a_login_shows_it(
    name: str,
    vcsim: Vcsim,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    how, settings, kind = FAILURES[name]
    with Between(vcsim) as between:
        if how is not None:
            between.spoil[LOGIN] = how
        chosen = vcsim.settings(port=between.port, **settings)
        rest = RestSession(chosen, environ=_Environ(ENVIRON))
        error = error_of(rest.open)
        assert type(error) is kind
        texts = [*everything(error), repr(rest), str(vars(rest))]
        rest.close()
    printed = capfd.readouterr()
    texts += [caplog.text, printed.out, printed.err, vcsim.log]
    assert_no_secret(iter(texts))
    for text in texts:
        assert TOKEN[12:] not in text, text[:2000]
    assert vcsim.counts["rest_sessions"] == 0


def test_a_failure_after_the_login_does_not_show_it_either(own_vcsim: Vcsim) -> None:
    own_vcsim.control(users={USER: {"password": SECRET}})
    rest = RestSession(own_vcsim.settings(), environ=_Environ(ENVIRON))
    with rest:
        texts = [str(vars(rest))]
        texts += everything(error_of(lambda: rest.get(f"{LIBRARIES}/id:none")))
        own_vcsim.control(users={USER: {"password": "changed"}}, expire_sessions=True)
        error = error_of(lambda: rest.get(LIBRARIES))
        assert isinstance(error, VCenterRefused)
        texts += everything(error)
        own_vcsim.stop()
        texts += everything(error_of(lambda: rest.get(LIBRARIES)))
    assert_no_secret(iter(texts))
    assert all(TOKEN[12:] not in text for text in texts)


def test_a_server_that_nobody_listens_at(vcsim: Vcsim) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    opening: Callable[[], None] = client(vcsim, port=port).open
    with pytest.raises(VCenterUnreachable, match="cannot be reached"):
        opening()
