"""Parsing and rendering of the Open Inference Protocol, apart from any server."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.predictor import payment_spec, read_payments
from serving.protocol import ModelSpec, ProtocolError, Tensor, parse_infer, render_infer

SPEC = payment_spec("3")
GOOD = {
    "inputs": [
        {"name": "customer_id", "datatype": "INT64", "shape": [2], "data": [1, 2]},
        {"name": "terminal_id", "datatype": "INT64", "shape": [2], "data": [3, 4]},
        {"name": "amount", "datatype": "FP64", "shape": [2], "data": [1.5, 2]},
        {"name": "event_time", "datatype": "INT64", "shape": [2], "data": [10**18, 10**18]},
    ]
}


def parse(request: Any, header_length: str | None = None, tail: bytes = b"") -> Any:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return parse_infer(body + tail, header_length, SPEC, max_rows=100)


def changed(at: int, **fields: Any) -> dict[str, Any]:
    request = json.loads(json.dumps(GOOD))
    request["inputs"][at].update(fields)
    return request


def test_a_good_request_is_read() -> None:
    request = parse({**GOOD, "id": "a"})
    assert request.id == "a"
    assert request.tensors["amount"].tolist() == [1.5, 2.0]
    assert request.tensors["event_time"].dtype == np.int64
    assert request.outputs == (("fraud_probability", False),)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b'{"inputs": NaN}', "NaN"),
        (b'{"inputs": [-Infinity]}', "-Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "not JSON"),
        ([], "is a JSON object"),
        ({}, '"inputs" is null'),
        ({"inputs": 3}, '"inputs" is 3'),
        ({"inputs": [3]}, "unknown input 3"),
        ({**GOOD, "id": 7}, '"id" is 7'),
        ({"inputs": GOOD["inputs"][:3]}, "input event_time is missing"),
        ({"inputs": [*GOOD["inputs"], GOOD["inputs"][0]]}, "customer_id is there twice"),
        (changed(0, name="transaction_id"), 'unknown input "transaction_id"'),
        (changed(0, datatype="INT32"), 'datatype "INT32"; it takes INT64'),
        (changed(0, datatype=["INT64"]), "it takes INT64"),
        (changed(0, shape=[2, 1]), "it takes [n]"),
        (changed(0, shape=[True]), "it takes [n]"),
        (changed(0, shape=[0], data=[]), "1 to 100"),
        (changed(0, shape=[101]), "1 to 100"),
        (changed(0, shape=[-1]), "1 to 100"),
        (changed(0, data=[1]), "1 values"),
        (changed(0, data=[1, "2"]), 'customer_id[1] is "2"'),
        (changed(0, data=[1, 2.0]), "customer_id[1] is 2.0; it takes INT64"),
        (changed(0, data=[1, True]), "customer_id[1] is true"),
        (changed(0, data=[1, None]), "customer_id[1] is null"),
        (changed(0, data=[1, 2**63]), "does not fit INT64"),
        (changed(2, data=[1, 10**400]), "amount"),
        (changed(0, data={"a": 1}), "data of"),
        (changed(0, shape=[1], data=[1]), "differ in length"),
        (changed(0, parameters=[]), '"parameters" of input customer_id'),
        (changed(0, parameters={"shared_memory_region": "x"}), "shared memory"),
        (changed(0, parameters={"binary_data_size": 16}), "0 are left"),
        (changed(0, parameters={"binary_data_size": "16"}), "binary_data_size"),
        (changed(0, parameters={"binary_data_size": -16}), "binary_data_size"),
        ({**GOOD, "parameters": 1}, '"parameters" is 1'),
        ({**GOOD, "parameters": {"binary_data_output": 1}}, "true or false"),
        ({**GOOD, "outputs": {}}, '"outputs" is {}'),
        ({**GOOD, "outputs": [{"name": "score"}]}, '"score" is unknown'),
        ({**GOOD, "outputs": [{"name": "features"}] * 2}, "there twice"),
        ({**GOOD, "outputs": ["features"]}, '"features" is unknown'),
        (
            {**GOOD, "outputs": [{"name": "features", "parameters": {"classification": 3}}]},
            "binary_data alone",
        ),
    ],
)
def test_what_is_wrong_is_said(request_: Any, says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(request_)
    assert caught.value.status == 400
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("length", ["-1", "x", "", "999999", "1e3", "٣", "9" * 40])
def test_a_wrong_header_length_is_said(length: str) -> None:
    with pytest.raises(ProtocolError, match="Inference-Header-Content-Length"):
        parse(GOOD, header_length=length)


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    body = json.dumps(GOOD).encode()
    with pytest.raises(ProtocolError, match="3 bytes follow"):
        parse(body, header_length=str(len(body)), tail=b"abc")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("amount", np.nan, "amount[1] is nan"),
        ("amount", np.inf, "amount[1] is inf"),
        ("amount", -0.01, "amount[1] is -0.01"),
        ("amount", 1e300, "amount[1] is 1e+300"),
        ("customer_id", -1, "customer_id[1] is -1"),
        ("terminal_id", -(2**63), "terminal_id[1]"),
        ("event_time", -1, "since 1970"),
        ("event_time", 2**63 - 1, "ahead of this server's clock"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: float, says: str) -> None:
    tensors = parse(GOOD).tensors
    tensors[field] = tensors[field].copy()
    tensors[field][1] = value
    with pytest.raises(ProtocolError) as caught:
        read_payments(tensors, 60.0)
    assert says in str(caught.value)
    assert caught.value.status == 400


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_broken_request_is_a_protocol_error_and_nothing_else(data: st.DataObject) -> None:
    """A good request with one part, anywhere in it, replaced by anything."""
    request: Any = {**json.loads(json.dumps(GOOD)), "outputs": [{"name": "features"}], "id": "1"}
    where, key = request, None
    inside: Any = request
    while isinstance(inside, (dict, list)) and inside and (key is None or data.draw(st.booleans())):
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        where, key = inside, data.draw(st.sampled_from(keys))
        inside = inside[key]
    where[key] = data.draw(JSON_VALUES)
    body = json.dumps(request).encode()
    with suppress(ProtocolError):
        assert len(read_payments(parse(body).tensors, 60.0)) == 2


@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 220).map(str))
@example(body=b"\xef\xbb\xbf{}", length=None)
def test_any_bytes_are_a_protocol_error(body: bytes, length: str | None) -> None:
    with pytest.raises(ProtocolError):
        parse_infer(body, length, SPEC, max_rows=10)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
BOTH = ModelSpec(
    name="m",
    version="1",
    inputs=(Tensor("a", "FP64"), Tensor("b", "INT64"), Tensor("c", "BOOL")),
    outputs=(Tensor("a", "FP64"), Tensor("b", "INT64"), Tensor("c", "BOOL")),
)


@given(
    rows=st.lists(
        st.tuples(FLOATS, st.integers(-(2**63), 2**63 - 1), st.booleans()), min_size=1, max_size=5
    ),
    binary=st.booleans(),
)
def test_values_survive_rendering_and_parsing(rows: list[Any], binary: bool) -> None:
    """What is rendered, read back as a request of the same tensors, in JSON and in binary."""
    a, b, c = zip(*rows, strict=True)
    tensors = {"a": np.array(a), "b": np.array(b, dtype=np.int64), "c": np.array(c)}
    asked = parse_infer(
        json.dumps(
            {
                "inputs": [
                    {"name": "a", "datatype": "FP64", "shape": [1], "data": [0]},
                    {"name": "b", "datatype": "INT64", "shape": [1], "data": [0]},
                    {"name": "c", "datatype": "BOOL", "shape": [1], "data": [False]},
                ],
                "parameters": {"binary_data_output": binary},
            }
        ).encode(),
        None,
        BOTH,
        max_rows=1,
    )
    body, header_length = render_infer(BOTH, asked, tensors)
    assert (header_length is not None) == binary
    header = json.loads(body[:header_length])
    request = json.dumps({"inputs": header["outputs"]}).encode()
    tail = body[header_length:] if header_length else b""
    back = parse_infer(request + tail, str(len(request)), BOTH, max_rows=9).tensors
    for name, value in tensors.items():
        assert np.array_equal(back[name], value)
