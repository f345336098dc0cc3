"""The simulated vCenter's sessions, clocks, statistics and outages, asked by real pyVmomi."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import SoapStubAdapter, vim, vmodl

from tests.vcsim_client import (
    HOST,
    VM,
    WINDOW_S,
    ask,
    at,
    connected,
    counter_ids,
    find,
    grid,
    series,
)
from tests.vcsim_server import PASSWORD, READER, READER_PASSWORD, USER, Vcsim

pytestmark = pytest.mark.needs("go")


@pytest.fixture
def service(vcsim: Vcsim) -> Iterator[Any]:
    with connected(vcsim) as service:
        yield service


class TestSessions:
    def test_logs_in_over_verified_tls_and_counts_the_session(self, vcsim: Vcsim) -> None:
        with connected(vcsim) as service:
            assert service.content.about.apiVersion == "8.0.2.0"
            assert vcsim.counts["sessions"] == 1
        assert vcsim.counts["sessions"] == 0
        assert vcsim.counts["logouts"] == 1

    def test_refuses_a_wrong_password(self, vcsim: Vcsim) -> None:
        with pytest.raises(vim.fault.InvalidLogin), connected(vcsim, password="wrong"):
            pass
        assert vcsim.counts["refused_logins"] == 1

    def test_refuses_those_who_have_not_logged_in(self, vcsim: Vcsim) -> None:
        context = ssl.create_default_context(cafile=vcsim.ca_file)
        stub = SoapStubAdapter(host=vcsim.address, port=vcsim.port, sslContext=context)
        content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
        with pytest.raises(vim.fault.NotAuthenticated):
            content.viewManager.CreateContainerView(content.rootFolder, [], True)
        stub.DropConnections()

    def test_an_expired_session_is_not_authenticated_and_may_log_in_again(
        self, vcsim: Vcsim, service: Any
    ) -> None:
        vcsim.control(expire_sessions=True)
        with pytest.raises(vim.fault.NotAuthenticated):
            service.CurrentTime()
        service.content.sessionManager.Login(USER, PASSWORD)
        assert service.CurrentTime()
        assert vcsim.counts["expired"] == 1

    def test_counts_views_that_nobody_destroyed(self, vcsim: Vcsim, service: Any) -> None:
        content = service.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [], True)
        kept = content.viewManager.CreateContainerView(content.rootFolder, [], True)
        assert vcsim.counts["views"] == 2
        view.Destroy()
        assert vcsim.counts["views"] == 1
        assert len(kept.view) > 0
        service.content.sessionManager.Logout()
        assert vcsim.counts["views_left"] == 1
        service.content.sessionManager.Login(USER, PASSWORD)

    def test_the_reader_lacks_what_changes_something(self, vcsim: Vcsim) -> None:
        with connected(vcsim, READER, READER_PASSWORD) as service:
            manager, root = service.content.authorizationManager, service.content.rootFolder
            key = service.content.sessionManager.currentSession.key
            asked = ["System.Read", "VirtualMachine.Inventory.Create"]
            (answer,) = manager.HasPrivilegeOnEntities([root], key, asked)
            assert [one.isGranted for one in answer.privAvailability] == [True, False]
            (answer,) = manager.HasUserPrivilegeOnEntities([root], USER, asked)
            assert [one.isGranted for one in answer.privAvailability] == [True, True]
            with pytest.raises(vim.fault.NoPermission) as refused:
                find(service, vim.VirtualMachine, VM).PowerOff()
            assert refused.value.privilegeId == "VirtualMachine.Interact.PowerOff"

    def test_named_privileges_can_be_taken_away(self, vcsim: Vcsim) -> None:
        vcsim.control(users={READER: {"password": "new", "missing": ["System.Read"]}})
        with connected(vcsim, READER, "new") as service:
            host = find(service, vim.HostSystem, HOST)
            with pytest.raises(vim.fault.NoPermission):
                host.configManager.dateTimeSystem.QueryDateTime()


class TestClocks:
    def test_vcenter_and_host_have_clocks_of_their_own(self, vcsim: Vcsim, service: Any) -> None:
        vcsim.control(vcenter_skew_s=-30, host_skew_s={HOST: 45.5})
        now = time.time()
        assert service.CurrentTime().timestamp() - now == pytest.approx(-30, abs=1)
        host = find(service, vim.HostSystem, HOST)
        read = host.configManager.dateTimeSystem.QueryDateTime()
        assert read.timestamp() - time.time() == pytest.approx(45.5, abs=1)

    def test_the_date_of_a_host_can_be_forbidden(self, vcsim: Vcsim, service: Any) -> None:
        vcsim.control(host_date_forbidden=True)
        with pytest.raises(vim.fault.NoPermission):
            find(service, vim.HostSystem, HOST).configManager.dateTimeSystem.QueryDateTime()


class TestPerf:
    def test_ids_differ_from_server_to_server(self, service: Any) -> None:
        ids = counter_ids(service)
        with Vcsim(seed=2) as other, connected(other) as second:
            others = counter_ids(second)
        assert ids.keys() == others.keys()
        assert ids != others

    def test_windows_end_on_the_grid_and_begin_after_the_start(self, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        found = series(service, vm, "cpu.usage.average", start=end - 60, endTime=at(end))
        assert [stamp for stamp, _ in found] == [end - 40, end - 20, end]

    def test_usual_values_are_the_same_each_time_and_unlike_each_other(self, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        first = series(service, vm, "cpu.usage.average", start=end - 600, endTime=at(end))
        assert first == series(service, vm, "cpu.usage.average", start=end - 600, endTime=at(end))
        assert len({value for _, value in first}) > 20

    def test_an_average_follows_its_scripted_truth_exactly(
        self, vcsim: Vcsim, service: Any
    ) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        steps = [[end - 55, end - 25, 6000], [end - 25, end, 1000]]
        vcsim.control(truth=[{"entity": VM, "counter": "cpu.usage.average", "steps": steps}])
        found = series(service, vm, "cpu.usage.average", start=end - 80, endTime=at(end))
        assert [value for _, value in found] == [0, 15 * 300, 15 * 300 + 5 * 50, 1000]

    def test_a_summation_is_the_integral_of_its_truth(self, vcsim: Vcsim, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        values = {"start_s": end - 40, "step_s": 0.5, "values": [1000.0] * 50}
        vcsim.control(truth=[{"entity": VM, "counter": "cpu.used.summation", **values}])
        found = series(service, vm, "cpu.used.summation", start=end - 60, endTime=at(end))
        assert [value for _, value in found] == [0, 20_000, 5_000]

    def test_latest_is_the_level_at_the_end(self, vcsim: Vcsim, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        steps = [[end - 20, end - 1, 99], [end - 1, end + 1, 7]]
        name = "disk.maxTotalLatency.latest"
        vcsim.control(truth=[{"entity": VM, "counter": name, "steps": steps}])
        assert series(service, vm, name, start=end - 20, endTime=at(end)) == [(end, 7)]

    def test_stars_give_all_instances_and_a_truth_belongs_to_one(
        self, vcsim: Vcsim, service: Any
    ) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        steps = {"steps": [[0, end + 60, 512]]}
        vcsim.control(
            truth=[
                {"entity": VM, "counter": "virtualDisk.write.average", **steps},
                {"entity": VM, "counter": "net.bytesTx.average", "instance": "4000", **steps},
            ]
        )
        metrics = [("virtualDisk.write.average", "*"), ("net.bytesTx.average", "*")]
        (found,) = ask(service, vm, *metrics, start=end - 20, endTime=at(end))
        values = {one.id.instance: list(one.value) for one in found.value}
        assert values.keys() == {"scsi0:0", "", "4000"}
        assert values["scsi0:0"] == values["4000"] == [512] != values[""]

    def test_csv_says_the_same_as_xml(self, vcsim: Vcsim, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        asked = {"start": end - 60, "endTime": at(end)}
        (found,) = ask(service, vm, ("cpu.ready.summation", ""), **asked)
        (csv,) = ask(service, vm, ("cpu.ready.summation", ""), **asked, format="csv")
        assert csv.value[0].value == ",".join(map(str, found.value[0].value))
        fields = csv.sampleInfoCSV.split(",")
        assert fields[::2] == ["20"] * 3
        stamps = [one.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ") for one in found.sampleInfo]
        assert fields[1::2] == stamps
        vcsim.control(csv="refuse")
        with pytest.raises(vmodl.fault.InvalidArgument):
            ask(service, vm, ("cpu.ready.summation", ""), **asked, format="csv")
        vcsim.control(csv="ignore")
        (plain,) = ask(service, vm, ("cpu.ready.summation", ""), **asked, format="csv")
        assert isinstance(plain, vim.PerformanceManager.EntityMetric)

    def test_samples_appear_after_the_lag_and_go_after_an_hour(
        self, vcsim: Vcsim, service: Any
    ) -> None:
        vcsim.control(lag_s=900)
        vm, now = find(service, vim.VirtualMachine, VM), time.time()
        found = series(service, vm, "cpu.usage.average", start=now - 9000)
        assert found[-1][0] in {grid(now - 900), grid(now - 900) + WINDOW_S}
        assert found[0][0] > now - 3601

    def test_the_servers_whole_time_can_be_moved(self, vcsim: Vcsim, service: Any) -> None:
        vm, now = find(service, vim.VirtualMachine, VM), time.time()
        vcsim.control(time_shift_s=-2400, lag_s=600)
        assert service.CurrentTime().timestamp() == pytest.approx(now - 2400, abs=2)
        found = series(service, vm, "cpu.usage.average", start=now - 9000)
        assert found[-1][0] <= now - 3000 + 2
        assert now - 6000 < found[0][0] < now - 5970

    def test_some_windows_come_late_or_never(self, vcsim: Vcsim, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        vcsim.control(
            late=[{"entity": VM, "from_s": end - 40, "to_s": end - 20, "lag_s": 3000}],
            gaps=[{"from_s": end - 100, "to_s": end - 60}],
        )
        found = series(service, vm, "cpu.usage.average", start=end - 100, endTime=at(end))
        assert [stamp for stamp, _ in found] == [end - 40, end]

    def test_negative_repeated_and_newest_first(self, vcsim: Vcsim, service: Any) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 60
        bad = {"counter": "cpu.usage.average", "from_s": end - 40, "to_s": end - 20}
        vcsim.control(negatives=[bad], repeat_every=1, order="newest")
        found = series(service, vm, "cpu.usage.average", start=end - 60, endTime=at(end))
        stamps = [end, end, end - 20, end - 20, end - 40, end - 40]
        assert [stamp for stamp, _ in found] == stamps
        assert [value for _, value in found][2:4] == [-1, -1]
        assert found[0][1] > 0

    def test_a_stamp_is_of_the_hosts_clock_and_its_content_moves_with_it(
        self, vcsim: Vcsim, service: Any
    ) -> None:
        vm, end = find(service, vim.VirtualMachine, VM), grid(time.time()) - 200
        truth = {"entity": VM, "counter": "cpu.used.summation", "steps": [[end - 20, end, 1000]]}
        vcsim.control(truth=[truth], stamp_skew_s={"*": 45})
        found = series(service, vm, "cpu.used.summation", start=end, endTime=at(end + 60))
        assert found == [(end + 20, 0), (end + 40, 15_000), (end + 60, 5_000)]

    def test_availability_lists_an_id_that_the_table_does_not_know(self, service: Any) -> None:
        vm = find(service, vim.VirtualMachine, VM)
        manager = service.content.perfManager
        known = counter_ids(service).values()
        listed = {one.counterId for one in manager.QueryAvailablePerfMetric(vm, intervalId=20)}
        (stray,) = listed - set(known)
        wanted = [vim.PerformanceManager.MetricId(counterId=stray, instance="")]
        spec = vim.PerformanceManager.QuerySpec(entity=vm, metricId=wanted, startTime=at(0))
        with pytest.raises(vmodl.fault.InvalidArgument):
            manager.QueryPerf([spec])

    def test_counters_can_be_hidden_or_missing(self, vcsim: Vcsim, service: Any) -> None:
        vcsim.control(
            hidden_counters=["power.power.average"], missing_counters=["mem.latency.average"]
        )
        ids = counter_ids(service)
        assert "mem.latency.average" not in ids
        vm = find(service, vim.VirtualMachine, VM)
        listed = service.content.perfManager.QueryAvailablePerfMetric(vm, intervalId=20)
        assert ids["power.power.average"] not in {one.counterId for one in listed}
        (found,) = ask(service, vm, ("power.power.average", ""), start=0)
        assert list(found.value) == []

    def test_history_has_the_lowest_level_alone(self, service: Any) -> None:
        vm, now = find(service, vim.VirtualMachine, VM), time.time()
        ids = counter_ids(service)
        wanted = [
            vim.PerformanceManager.MetricId(counterId=ids[name], instance="")
            for name in ("cpu.ready.summation", "cpu.costop.summation")
        ]
        spec = vim.PerformanceManager.QuerySpec(
            entity=vm, metricId=wanted, startTime=at(now - 7200), intervalId=300
        )
        (found,) = service.content.perfManager.QueryPerf([spec])
        assert [one.id.counterId for one in found.value] == [ids["cpu.ready.summation"]]
        assert len(found.sampleInfo) in {23, 24}

    def test_the_limit_of_a_query_is_told_and_enforced(self, vcsim: Vcsim, service: Any) -> None:
        vcsim.control(max_query_metrics="2")
        (option,) = service.content.setting.QueryOptions("config.vpxd.stats.maxQueryMetrics")
        assert option.value == "2"
        vm = find(service, vim.VirtualMachine, VM)
        names = ["cpu.usage.average", "cpu.ready.summation", "power.power.average"]
        with pytest.raises(vmodl.fault.InvalidArgument) as refused:
            ask(service, vm, *[(name, "") for name in names], start=0)
        assert refused.value.invalidProperty == "querySpec.size"
        vcsim.control(max_query_metrics="-1")
        assert ask(service, vm, *[(name, "") for name in names], start=0)
        vcsim.control(options_forbidden=True)
        with pytest.raises(vim.fault.NoPermission):
            service.content.setting.QueryOptions("config.vpxd.stats.maxQueryMetrics")
        vcsim.control(options_forbidden=False, max_query_metrics=None)
        with pytest.raises(vim.fault.InvalidName):
            service.content.setting.QueryOptions("config.vpxd.stats.maxQueryMetrics")

    def test_counts_the_queries_and_those_without_a_start(self, vcsim: Vcsim, service: Any) -> None:
        vm = find(service, vim.VirtualMachine, VM)
        vcsim.control(reset_counts=True)
        ask(service, vm, ("cpu.usage.average", ""), ("power.power.average", ""), start=0)
        ask(service, vm, ("cpu.usage.average", ""), start=None, maxSample=3)
        report = vcsim.control()
        assert report["counts"]["queries"] == 2
        assert report["counts"]["query_metrics"] == 3
        assert report["counts"]["query_metrics_most"] == 2
        assert report["counts"]["queries_without_start"] == 1
        assert report["query_times"] == [pytest.approx(time.time(), abs=5)] * 2

    def test_an_entity_that_is_gone_is_not_found(self, service: Any) -> None:
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            ask(service, vim.VirtualMachine("vm-99999"), ("cpu.usage.average", ""), start=0)

    def test_hosts_have_counters_too(self, vcsim: Vcsim, service: Any) -> None:
        host, end = find(service, vim.HostSystem, HOST), grid(time.time()) - 60
        watts = {"entity": HOST, "counter": "power.energy.summation", "steps": [[0, end, 450]]}
        vcsim.control(truth=[watts])
        found = series(service, host, "power.energy.summation", start=end - 20, endTime=at(end))
        assert found == [(end, 9000)]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pyVmomi's, of connections cut off
class TestOutages:
    def test_the_whole_server_is_out_and_comes_back(self, vcsim: Vcsim, service: Any) -> None:
        vcsim.control(outages=[{"mode": "503"}])
        with pytest.raises(Exception, match="503"):
            service.CurrentTime()
        vcsim.control(outages=[{"mode": "refuse"}])
        with pytest.raises((OSError, ConnectionError)):
            service.CurrentTime()
        vcsim.control(outages=[{"mode": "refuse", "from_s": 3600, "to_s": 3601}])
        assert service.CurrentTime()

    def test_kept_connections_are_closed_without_a_word(self, vcsim: Vcsim, service: Any) -> None:
        vcsim.control(drop_connections=True)
        with pytest.raises(OSError):  # noqa: PT011 - what is seen of it differs with the moment
            service.CurrentTime()
        assert service.CurrentTime()

    def test_it_hangs(self, vcsim: Vcsim, service: Any) -> None:
        service._stub.schemeArgs["timeout"] = 0.2
        service._stub.DropConnections()
        vcsim.control(outages=[{"mode": "hang"}])
        with pytest.raises(TimeoutError):
            service.CurrentTime()
        vcsim.control(outages=[])

    def test_the_statistics_alone_are_out(self, vcsim: Vcsim, service: Any) -> None:
        vm = find(service, vim.VirtualMachine, VM)
        vcsim.control(outages=[{"mode": "perf_fault"}])
        with pytest.raises(vmodl.fault.SystemError):
            ask(service, vm, ("cpu.usage.average", ""), start=0)
        vcsim.control(outages=[{"mode": "perf_503"}])
        with pytest.raises(Exception, match="503"):
            ask(service, vm, ("cpu.usage.average", ""), start=0)
        assert service.CurrentTime()

    def test_it_keeps_its_port_and_certificate_over_a_restart(self, own_vcsim: Vcsim) -> None:
        own_vcsim.control(vcenter_skew_s=100)
        port, thumbprint = own_vcsim.port, own_vcsim.thumbprint
        own_vcsim.stop()
        with pytest.raises(ConnectionRefusedError), connected(own_vcsim):
            pass
        own_vcsim.start()
        assert (own_vcsim.port, own_vcsim.thumbprint) == (port, thumbprint)
        with connected(own_vcsim) as service:
            skew = service.CurrentTime().timestamp() - time.time()
            assert skew == pytest.approx(100, abs=1)

    def test_a_wrong_word_is_an_error_that_names_the_known_ones(self, vcsim: Vcsim) -> None:
        with pytest.raises(ValueError, match=r"unknown key .*lag_s"):
            vcsim.control(lagg_s=3)
        with pytest.raises(ValueError, match="known are oldest, newest"):
            vcsim.control(order="any")
