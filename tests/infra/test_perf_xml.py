"""The reader of QueryPerf's answers against pyVmomi's own, and what it does with the unusable."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import SoapStubAdapter, vim
from pyVmomi.SoapAdapter import SoapResponseDeserializer

from infra.vsphere.perf_xml import (
    CHUNK_BYTES,
    PerfSeries,
    SoapError,
    Wanted,
    envelope,
    read_answer,
    time_ns,
    time_text,
)

NS = 1_000_000_000
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope'
    ' xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
)
TAIL = "</soapenv:Body></soapenv:Envelope>"
STUB = SoapStubAdapter(host="nowhere", version="vim.version.version9")

Samples = list[tuple[datetime, int]]
Values = list[tuple[int, str, list[int]]]


def answer(entities: list[tuple[str, Samples, Values]], csv: bool) -> bytes:
    """An answer as a vCenter writes it."""
    parts = []
    for moid, samples, series in entities:
        kind = "PerfEntityMetricCSV" if csv else "PerfEntityMetric"
        parts.append(f'<returnval xsi:type="{kind}">')
        parts.append(f'<entity type="VirtualMachine">{escape(moid)}</entity>')
        times = [(moment.isoformat().replace("+00:00", "Z"), each) for moment, each in samples]
        if csv:
            info = ",".join(f"{each},{moment}" for moment, each in times)
            parts.append(f"<sampleInfoCSV>{info}</sampleInfoCSV>")
        else:
            parts += [
                f"<sampleInfo><timestamp>{moment}</timestamp><interval>{each}</interval>"
                "</sampleInfo>"
                for moment, each in times
            ]
        for number, instance, values in series:
            of = "PerfMetricSeriesCSV" if csv else "PerfMetricIntSeries"
            parts.append(
                f'<value xsi:type="{of}"><id><counterId>{number}</counterId>'
                f"<instance>{escape(instance)}</instance></id>"
            )
            texts = [",".join(map(str, values))] if csv else map(str, values)
            parts += [f"<value>{text}</value>" for text in texts]
            parts.append("</value>")
        parts.append("</returnval>")
    body = f'<QueryPerfResponse xmlns="urn:vim25">{"".join(parts)}</QueryPerfResponse>'
    return (HEAD + body + TAIL).encode()


def oracle(data: bytes) -> Iterator[tuple[str, int, str, int, int, int]]:
    """What pyVmomi makes of an answer: object, counter, instance, interval, end in ns, value."""
    kind = vim.PerformanceManager.EntityMetricBase.Array
    for entity in SoapResponseDeserializer(STUB).Deserialize(data, kind):
        moid = entity.entity._GetMoId()
        if isinstance(entity, vim.PerformanceManager.EntityMetricCSV):
            fields = entity.sampleInfoCSV.split(",") if entity.sampleInfoCSV else []
            infos = [
                (int(each), datetime.fromisoformat(moment))
                for each, moment in zip(fields[::2], fields[1::2], strict=True)
            ]
            series = [
                (one.id, [int(text) for text in one.value.split(",")] if one.value else [])
                for one in entity.value
            ]
        else:
            infos = [(info.interval, info.timestamp) for info in entity.sampleInfo]
            series = [(one.id, list(one.value)) for one in entity.value]
        for metric, values in series:
            for (interval, moment), value in zip(infos, values, strict=True):
                end_ns = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
                yield (moid, metric.counterId, metric.instance, interval, end_ns * 1000, value)


def flat(series: list[PerfSeries]) -> Iterator[tuple[str, int, str, int, int, int]]:
    for one in series:
        for end_ns, value in zip(one.ends_ns.tolist(), one.values.tolist(), strict=True):
            yield one.moid, one.counter_id, one.instance, one.interval_s, end_ns, value


class Trickle(io.BytesIO):
    """A body that gives few bytes at a time, so that pieces end anywhere."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self._step = step

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self._step)


moments = st.datetimes(
    min_value=datetime(2020, 1, 1), max_value=datetime(2040, 1, 1), timezones=st.just(UTC)
)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\r"), max_size=6)
moids = st.text(st.characters(min_codepoint=45, max_codepoint=122), min_size=1, max_size=8)
counters = st.integers(min_value=-(2**31), max_value=2**31 - 1)
numbers = st.integers(min_value=-(2**63), max_value=2**63 - 1)


@st.composite
def entities(draw: st.DrawFn) -> list[tuple[str, Samples, Values]]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        samples = draw(st.lists(st.tuples(moments, st.sampled_from([20, 20, 20, 300])), max_size=4))
        row = st.lists(numbers, min_size=len(samples), max_size=len(samples))
        found.append(
            (draw(moids), samples, draw(st.lists(st.tuples(counters, texts, row), max_size=4)))
        )
    return found


@settings(deadline=None)
@given(entities(), st.booleans(), st.integers(1, 300))
def test_it_reads_what_pyvmomi_reads(
    made: list[tuple[str, Samples, Values]], csv: bool, step: int
) -> None:
    data = answer(made, csv)
    problems: list[str] = []
    series = list(read_answer(Trickle(data, step), problems))
    assert problems == []
    assert sorted(flat(series)) == sorted(oracle(data))


@settings(deadline=None)
@given(entities())
def test_both_formats_are_alike_and_intervals_do_not_mix(
    made: list[tuple[str, Samples, Values]],
) -> None:
    one = list(read_answer(io.BytesIO(answer(made, csv=True)), []))
    other = list(read_answer(io.BytesIO(answer(made, csv=False)), []))
    assert list(flat(one)) == list(flat(other))
    for series in one:
        assert series.ends_ns.dtype == series.values.dtype == np.int64


def test_times_and_values_that_do_not_belong_together_are_left_out_and_told() -> None:
    times: Samples = [
        (datetime(2026, 11, 25, tzinfo=UTC) + timedelta(seconds=20 * i), 20) for i in range(3)
    ]
    data = answer([("vm-7", times, [(5, "", [1, 2]), (6, "", [1, 2, 3])])], csv=True)
    problems: list[str] = []
    assert [one.counter_id for one in read_answer(io.BytesIO(data), problems)] == [6]
    assert problems == ["vm-7, counter 5 '': 3 times and 2 values do not belong together; left out"]


def test_an_empty_place_among_values_is_a_missing_one() -> None:
    times: Samples = [
        (datetime(2026, 11, 25, tzinfo=UTC) + timedelta(seconds=20 * i), 20) for i in range(3)
    ]
    data = answer([("vm-7", times, [(5, "", [1, 2, 3])])], csv=True)
    (series,) = read_answer(io.BytesIO(data.replace(b"1,2,3", b"1,,3")), [])
    assert series.values.tolist() == [1, -1, 3]


FAULT = (
    "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>The session is not\n"
    ' authenticated.</faultstring><detail><NotAuthenticatedFault xmlns="urn:vim25"'
    ' xsi:type="NotAuthenticated"><object type="Folder">group-d1</object>'
    "<privilegeId>System.View</privilegeId></NotAuthenticatedFault></detail></soapenv:Fault>"
)
INVALID = (
    "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>A specified parameter was"
    ' not correct: querySpec.format</faultstring><detail><InvalidArgumentFault xmlns="urn:vim25"'
    ' xsi:type="InvalidArgument"><invalidProperty>querySpec.format</invalidProperty>'
    "</InvalidArgumentFault></detail></soapenv:Fault>"
)


@pytest.mark.parametrize(
    ("fault", "name", "sentence"),
    [
        (FAULT, "NotAuthenticated", "The session is not authenticated (NotAuthenticated)"),
        (
            INVALID,
            "InvalidArgument",
            "A specified parameter was not correct: querySpec.format [querySpec.format]"
            " (InvalidArgument)",
        ),
        (
            "<soapenv:Fault><faultcode>x</faultcode><faultstring>broken</faultstring>"
            "</soapenv:Fault>",
            "Fault",
            "broken (Fault)",
        ),
    ],
)
def test_a_fault_is_a_sentence(fault: str, name: str, sentence: str) -> None:
    with pytest.raises(SoapError) as raised:
        list(read_answer(io.BytesIO((HEAD + fault + TAIL).encode()), []))
    assert raised.value.name == name
    assert str(raised.value) == sentence


def test_half_an_answer_is_none() -> None:
    times: Samples = [(datetime(2026, 11, 25, tzinfo=UTC), 20)]
    data = answer([("vm-1", times, [(5, "", [1])]), ("vm-2", times, [(5, "", [1])])], csv=True)
    for end in (0, 1, len(HEAD), len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="not whole"):
            list(read_answer(io.BytesIO(data[:end]), []))
    with pytest.raises(ValueError, match="some other XML"):
        list(read_answer(io.BytesIO(b"<html/>"), []))
    with pytest.raises(ValueError, match="document type"):
        list(read_answer(io.BytesIO(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), []))


class Endless(io.RawIOBase):
    """A long answer that is made while it is read."""

    def __init__(self, entity: bytes, count: int) -> None:
        self._pieces = iter(
            [HEAD.encode() + b'<QueryPerfResponse xmlns="urn:vim25">']
            + [entity] * count
            + [b"</QueryPerfResponse>" + TAIL.encode()]
        )

    def read(self, size: int = -1) -> bytes:
        return next(self._pieces, b"")


def test_memory_does_not_grow_with_the_answer() -> None:
    times: Samples = [(datetime(2026, 11, 25, tzinfo=UTC), 20)]
    whole = answer([("vm-1", times, [(n, "", [n]) for n in range(300)])], csv=True)
    entity = whole[whole.index(b"<returnval") : whole.index(b"</QueryPerfResponse>")]

    def peak(count: int) -> int:
        tracemalloc.start()
        read = sum(1 for _ in read_answer(Endless(entity, count), []))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert read == 300 * count
        return highest

    few, many = peak(20), peak(200)
    assert many < few + CHUNK_BYTES


def test_the_question_is_what_pyvmomi_would_send() -> None:
    start = datetime(2026, 11, 25, 1, 20, 0, 250_000, tzinfo=UTC)
    start_ns = time_ns(start.isoformat())
    wanted = [Wanted("VirtualMachine", "vm-1", ((6, ""), (7, "scsi0:0 & more")))]
    ours = envelope("PerfMgr", wanted, start_ns=start_ns, end_ns=None, interval_s=20, form="csv")
    manager = vim.PerformanceManager("PerfMgr", STUB)
    spec = vim.PerformanceManager.QuerySpec(
        entity=vim.VirtualMachine("vm-1", STUB),
        startTime=start,
        metricId=[
            vim.PerformanceManager.MetricId(counterId=6, instance=""),
            vim.PerformanceManager.MetricId(counterId=7, instance="scsi0:0 & more"),
        ],
        intervalId=20,
        format="csv",
    )
    info = vim.PerformanceManager._methodInfo["QueryStats"]
    theirs = STUB.SerializeRequest(manager, info, ([spec],))
    assert canonical(ours) == canonical(theirs)


def canonical(data: bytes) -> list[tuple[str, dict[str, str], str]]:
    """Elements in order with their texts and types; times to the microsecond."""
    from xml.etree import ElementTree as tree

    found = []
    for one in tree.fromstring(data).iter():
        text = (one.text or "").strip()
        if one.tag.endswith("Time"):
            text = str(time_ns(text))
        attributes = {key: value for key, value in one.attrib.items() if key == "type"}
        found.append((one.tag, attributes, text))
    return found


@given(st.integers(min_value=0, max_value=2**61))
def test_times_there_and_back(ns: int) -> None:
    assert time_ns(time_text(ns)) == ns // 1000 * 1000


def test_times_of_all_kinds() -> None:
    assert time_ns("2026-11-25T01:00:00Z") == time_ns("2026-11-25T02:00:00.000+01:00")
    assert time_ns("2026-11-25T01:00:00") == time_ns("2026-11-25T01:00:00Z")
    texts = [f"2026-11-25T01:00:{second:02}Z" for second in (0, 20, 40)]
    assert {later - one for one, later in pairwise(map(time_ns, texts))} == {20 * NS}
