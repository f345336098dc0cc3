"""A session with the simulated vCenter: trust, time-outs, renewal, and that nothing is left."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from infra.vsphere import properties, session
from infra.vsphere.backoff import Backoff
from infra.vsphere.errors import VCenterRefused, VCenterUnreachable, VCenterUntrusted, sentence
from infra.vsphere.session import VCenter
from infra.vsphere.soap import BUFFER_BYTES
from tests.infra.between import Between, Handler, drop, fault, hang, html, missing, once
from tests.vcsim_server import READER, USER, Vcsim

pytestmark = pytest.mark.needs("go")

CURRENT_TIME = (
    b'<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/'
    b'envelope/"><soapenv:Body><CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">'
    b"ServiceInstance</_this></CurrentTime></soapenv:Body></soapenv:Envelope>"
)


def client(vcsim: Vcsim, **settings: Any) -> VCenter:
    return VCenter(vcsim.settings(**settings), environ=vcsim.environ())


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < limit_s


def assert_nothing_left(vcsim: Vcsim) -> None:
    counts = vcsim.counts
    assert (counts["sessions"], counts["views"]) == (0, 0)


# --- opened and closed


def test_opens_says_as_whom_and_leaves_nothing(vcsim: Vcsim) -> None:
    with client(vcsim) as vcenter:
        assert vcenter.user == USER
        assert vcenter.tls == "verified by ca_file"
        assert vcenter.version.startswith("VMware vCenter Server ")
        assert vcenter.call(vcenter.service.CurrentTime)
        assert len(vcenter.retrieve(vim.VirtualMachine, ["name"])) > 1
        assert vcsim.counts["sessions"] == 1
    assert_nothing_left(vcsim)


def test_leaves_nothing_after_an_error_either(vcsim: Vcsim) -> None:
    def fail(vcenter: VCenter) -> None:
        with vcenter, vcenter._view(vim.HostSystem, None):
            assert vcsim.counts["views"] == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail(client(vcsim))
    assert_nothing_left(vcsim)


def test_a_view_is_destroyed_when_the_sweep_over_it_fails(vcsim: Vcsim) -> None:
    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        between.spoil["RetrievePropertiesEx"] = fault("InvalidPropertyFault")
        with pytest.raises(vmodl.query.InvalidProperty):
            vcenter.retrieve(vim.VirtualMachine, ["no.such.property"])
        assert vcsim.counts["views_made"] == 1
        assert vcsim.counts["views"] == 0
    assert_nothing_left(vcsim)


def test_closing_destroys_views_whose_destruction_failed(vcsim: Vcsim) -> None:
    with Between(vcsim) as between:
        between.spoil["DestroyView"] = once(drop)
        with client(vcsim, port=between.port) as vcenter:
            assert vcenter.retrieve(vim.HostSystem, ["name"])
            assert vcsim.counts["views"] == 1
        assert between.seen.count("DestroyView") == 2
    assert_nothing_left(vcsim)


def test_may_be_opened_again_and_closed_twice(vcsim: Vcsim) -> None:
    vcenter = client(vcsim)
    for _ in range(2):
        vcenter.open()
        vcenter.open()
        vcenter.close()
        vcenter.close()
    assert vcsim.counts["logins"] == 2
    assert_nothing_left(vcsim)
    with pytest.raises(VCenterUnreachable, match="is closed"):
        vcenter.call(lambda: 1)


def test_another_account(vcsim: Vcsim) -> None:
    with VCenter(vcsim.settings(), environ=vcsim.environ(reader=True)) as vcenter:
        assert vcenter.user == READER


def test_speaks_the_newest_version_that_both_know(vcsim: Vcsim) -> None:
    with client(vcsim) as vcenter:
        assert vcenter.stub.version == "vim.version.v8_0_2_0"
    with Between(vcsim) as between:
        between.spoil["/sdk/vimServiceVersions.xml"] = missing
        with client(vcsim, port=between.port) as vcenter:
            assert vcenter.stub.version == session.OLDEST


# --- trust


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_unknown_certificate_is_refused_even_on_localhost(vcsim: Vcsim, host: str) -> None:
    with pytest.raises(VCenterUntrusted, match="is not verified") as raised:
        client(vcsim, ca_file="", host=host).open()
    assert vcsim.thumbprint.replace(":", "").upper() in str(raised.value).replace(":", "")
    assert "vcenter.ca_file" in str(raised.value)
    assert vcsim.counts.get("calls.Login", 0) == 0


@pytest.mark.parametrize("form", [str.lower, str.upper, lambda text: text.replace(":", "")])
def test_a_pinned_certificate_is_trusted(vcsim: Vcsim, form: Any) -> None:
    with client(vcsim, thumbprint=form(vcsim.thumbprint)) as vcenter:
        assert vcenter.tls == "pinned thumbprint"
        assert vcenter.call(vcenter.service.CurrentTime)


def test_another_certificate_than_the_pinned_is_refused(
    vcsim: Vcsim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that the system trusts, which pyVmomi's own thumbprint would let pass."""
    monkeypatch.setenv("SSL_CERT_FILE", vcsim.ca_file)
    with client(vcsim, ca_file="") as vcenter:
        assert vcenter.tls == "verified"
    with pytest.raises(VCenterUntrusted, match="another certificate than the pinned") as raised:
        client(vcsim, thumbprint="ab" * 32).open()
    assert vcsim.thumbprint.replace(":", "").upper() in str(raised.value).replace(":", "")
    assert vcsim.counts["calls.Login"] == 1


def test_the_pin_holds_for_each_connection(vcsim: Vcsim, own_vcsim: Vcsim) -> None:
    with client(vcsim, thumbprint=vcsim.thumbprint) as vcenter:
        vcenter.stub.DropConnections()
        vcenter.stub.port = own_vcsim.port  # as if somebody had slipped in meanwhile
        with pytest.raises(VCenterUntrusted, match="another certificate"):
            vcenter.call(vcenter.service.CurrentTime)
        vcenter.stub.port = vcsim.port
    assert_nothing_left(vcsim)


def test_the_certificate_must_be_of_this_name(vcsim: Vcsim) -> None:
    with Between(vcsim, "127.0.0.2") as between:
        with pytest.raises(VCenterUntrusted, match=r"127\.0\.0\.2"):
            client(vcsim, host="127.0.0.2", port=between.port).open()
        assert "Login" not in between.seen


def test_without_verification_it_says_so(vcsim: Vcsim) -> None:
    with client(vcsim, insecure=True) as vcenter:
        assert vcenter.tls == "NOT VERIFIED (insecure)"


def test_a_ca_file_of_no_use_is_named(vcsim: Vcsim, tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("no certificate")
    for path in (empty, tmp_path / "none"):
        with pytest.raises(VCenterUntrusted, match="cannot be used") as raised:
            client(vcsim, ca_file=str(path)).open()
        assert str(path) in str(raised.value)


# --- time-outs


def test_a_server_that_takes_connections_and_never_answers(vcsim: Vcsim) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, within(3):
        port = mute.getsockname()[1]
        with pytest.raises(VCenterUnreachable, match=r"within 0\.3 s"):
            client(vcsim, port=port, timeout_s=0.3).open()


@pytest.mark.parametrize(
    "method", ["/sdk/vimServiceVersions.xml", "RetrieveServiceContent", "Login", "CurrentTime"]
)
def test_each_call_has_its_time_out(vcsim: Vcsim, method: str) -> None:
    with Between(vcsim) as between, within(5):
        between.spoil[method] = hang
        vcenter = client(vcsim, port=between.port, timeout_s=0.3)
        with pytest.raises(VCenterUnreachable, match=r"within 0\.3 s"), vcenter:
            vcenter.call(vcenter.service.CurrentTime)
    assert_nothing_left(vcsim)


def test_closing_does_not_wait_for_a_server_that_hangs(vcsim: Vcsim) -> None:
    with Between(vcsim) as between:
        vcenter = client(vcsim, port=between.port, timeout_s=30)
        vcenter.open()
        between.spoil["Logout"] = hang
        with within(1.5):
            vcenter.close(limit_s=0.3)
    vcsim.control(expire_sessions=True)


# --- what is no vCenter, or away


def test_what_is_no_vcenter_is_said_to_be_none(vcsim: Vcsim) -> None:
    with Between(vcsim) as between:
        vcenter = client(vcsim, port=between.port)
        for spoil, said in ((html, "not SOAP"), (missing, "404")):
            between.spoil["RetrieveServiceContent"] = spoil
            with pytest.raises(VCenterUnreachable, match=said):
                vcenter.open()


def test_a_name_that_nobody_knows(vcsim: Vcsim) -> None:
    with pytest.raises(VCenterUnreachable, match="cannot be reached"):
        client(vcsim, host="no-such-vcenter.invalid").open()


def test_a_server_that_is_away_and_comes_back(own_vcsim: Vcsim) -> None:
    with client(own_vcsim) as vcenter:
        own_vcsim.stop()
        with pytest.raises(VCenterUnreachable):
            vcenter.call(vcenter.service.CurrentTime, read_only=True)
        own_vcsim.start()
        # Sessions died with the server: the first answer is NotAuthenticated.
        assert vcenter.retrieve(vim.VirtualMachine, ["name"])
        assert own_vcsim.counts["logins"] == 1
    assert_nothing_left(own_vcsim)


def test_a_kept_connection_that_was_dropped(vcsim: Vcsim) -> None:
    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        between.spoil["CurrentTime"] = once(drop)
        assert vcenter.call(vcenter.service.CurrentTime, read_only=True)
        between.spoil["CurrentTime"] = once(drop)
        with pytest.raises(VCenterUnreachable, match="closed connection"):
            vcenter.call(vcenter.service.CurrentTime)  # it may have been done


# --- renewal


def test_logs_in_again_when_the_session_is_gone(vcsim: Vcsim) -> None:
    with client(vcsim) as vcenter:
        vcsim.control(expire_sessions=True)
        assert vcenter.retrieve(vim.VirtualMachine, ["name"])
        vcsim.control(expire_sessions=True)
        host = vcenter.retrieve(vim.HostSystem, ["name"])[0][0]
        vcsim.control(expire_sessions=True)
        assert vcenter.read([host], ["name"])
        assert vcsim.counts["logins"] == 4
    assert_nothing_left(vcsim)


def test_threads_renew_a_session_once(vcsim: Vcsim) -> None:
    with client(vcsim) as vcenter:
        vcsim.control(expire_sessions=True)
        found: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: found.append(len(vcenter.retrieve(vim.HostSystem, ["name"])))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert vcsim.counts["logins"] == 2
    assert_nothing_left(vcsim)


def test_a_session_that_is_lost_again_is_an_error(vcsim: Vcsim) -> None:
    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        between.spoil["CurrentTime"] = fault("NotAuthenticatedFault")
        with pytest.raises(VCenterRefused, match="ended the session at once"):
            vcenter.call(vcenter.service.CurrentTime)
        assert between.seen.count("Login") == 2
        assert vcsim.counts["sessions"] == 1  # the first was logged out, not left behind
    assert_nothing_left(vcsim)


def test_refused_credentials_are_not_tried_again_at_once(own_vcsim: Vcsim) -> None:
    environ = own_vcsim.environ()
    with VCenter(own_vcsim.settings(), environ=environ) as vcenter:
        own_vcsim.control(users={USER: {"password": "changed"}}, expire_sessions=True)
        with pytest.raises(VCenterRefused, match="wrong user or password"):
            vcenter.retrieve(vim.HostSystem, ["name"])
        for _ in range(3):
            with pytest.raises(VCenterRefused, match="not tried again within 15 minutes"):
                vcenter.retrieve(vim.HostSystem, ["name"])
        assert own_vcsim.counts["refused_logins"] == 1
        environ["STAGESCOPE_VCENTER_PASSWORD"] = "changed"
        assert vcenter.retrieve(vim.HostSystem, ["name"])
    assert_nothing_left(own_vcsim)


def test_a_login_that_fails_on_its_way_is_not_repeated_at_once(vcsim: Vcsim) -> None:
    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        between.spoil["Login"] = drop
        vcsim.control(expire_sessions=True)
        with pytest.raises(VCenterUnreachable, match="closed connection"):
            vcenter.retrieve(vim.HostSystem, ["name"])
        with pytest.raises(VCenterUnreachable, match="tried again within 60 s"):
            vcenter.retrieve(vim.HostSystem, ["name"])
        assert between.seen.count("Login") == 2


def test_waits_double_up_to_their_limit() -> None:
    now = [0.0]
    backoff = Backoff(now_s=lambda: now[0])
    waits = []
    for _ in range(6):
        backoff.failed(1.0, 10.0)
        waits.append(backoff.left_s())
    assert waits == [1, 2, 4, 8, 10, 10]
    now[0] = 20.0
    assert backoff.left_s() == 0
    backoff.succeeded()
    backoff.failed(1.0, 10.0)
    assert backoff.left_s() == 1


# --- raw posts


def test_posts_raw_soap_over_one_kept_connection(vcsim: Vcsim) -> None:
    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        before = between.connections
        for _ in range(10):
            with vcenter.post(CURRENT_TIME) as body:
                assert b"CurrentTimeResponse" in body.read()
        assert between.connections == before


def test_a_post_gives_the_fault_as_it_came(vcsim: Vcsim) -> None:
    unknown = CURRENT_TIME.replace(b"CurrentTime", b"NoSuchMethod")
    with client(vcsim) as vcenter, vcenter.post(unknown) as body:
        assert b"<faultstring>" in body.read()


def test_a_body_that_breaks_off_is_an_error(vcsim: Vcsim) -> None:
    def half(handler: Handler, body: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(3 * BUFFER_BYTES))
        handler.end_headers()
        handler.wfile.write(b"x" * 2 * BUFFER_BYTES)
        handler.close_connection = True
        return True

    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        between.spoil["CurrentTime"] = half
        with vcenter.post(CURRENT_TIME) as body:
            assert len(body.read(BUFFER_BYTES)) == BUFFER_BYTES
            with pytest.raises(VCenterUnreachable):
                body.read()
        between.spoil.clear()
        with vcenter.post(CURRENT_TIME) as body:
            assert body.read()


def test_a_body_that_stops_coming_ends_in_the_time_out(vcsim: Vcsim) -> None:
    def stall(handler: Handler, body: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.flush()
        return hang(handler, body)

    with Between(vcsim) as between, client(vcsim, port=between.port, timeout_s=0.3) as vcenter:
        between.spoil["CurrentTime"] = stall
        late = pytest.raises(VCenterUnreachable, match=r"within 0\.3 s")
        with within(2), vcenter.post(CURRENT_TIME) as body, late:
            body.read()


def test_a_body_that_trickles_in_ends_too(vcsim: Vcsim) -> None:
    def trickle(handler: Handler, body: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        with suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        return True

    with Between(vcsim) as between, client(vcsim, port=between.port, timeout_s=0.2) as vcenter:
        between.spoil["CurrentTime"] = trickle
        late = pytest.raises(VCenterUnreachable, match=r"within 0\.2 s")
        with within(3), vcenter.post(CURRENT_TIME) as body, late:
            body.read()


def test_a_post_to_a_sick_server(vcsim: Vcsim) -> None:
    with Between(vcsim) as between, client(vcsim, port=between.port) as vcenter:
        between.spoil["CurrentTime"] = missing
        with pytest.raises(VCenterUnreachable, match="404"):
            vcenter.post(CURRENT_TIME)


# --- reading properties


def test_reads_in_pages(vcsim: Vcsim, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(vcsim) as vcenter:
        whole = vcenter.retrieve(vim.VirtualMachine, ["name"])
        monkeypatch.setattr(properties, "PAGE", 1)
        assert [one for _, one in vcenter.retrieve(vim.VirtualMachine, ["name"])] == [
            one for _, one in whole
        ]


def test_reads_objects_of_several_kinds_in_one_question(vcsim: Vcsim) -> None:
    with client(vcsim) as vcenter:
        chosen = [
            vcenter.retrieve(kind, ["name"])[0][0] for kind in (vim.HostSystem, vim.Datastore)
        ]
        calls = vcsim.counts["calls.RetrievePropertiesEx"]
        read = dict(vcenter.read(chosen, ["name"]))
        assert set(read) == set(chosen)
        assert vcsim.counts["calls.RetrievePropertiesEx"] == calls + 1
        assert vcenter.read([], ["name"]) == []


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (vim.fault.NoPermission(privilegeId="System.Read"), "lacks System.Read on this object"),
        (vim.fault.NotAuthenticated(privilegeId="System.View"), "session is gone"),
        (vim.fault.InvalidLogin(), "InvalidLogin"),
        (vim.fault.NotFound(msg="not\n here "), "not here (NotFound)"),
        (KeyError("x"), "'x'"),
    ],
)
def test_faults_become_sentences(raised: Exception, said: str) -> None:
    assert said in sentence(raised)
