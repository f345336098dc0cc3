"""The Open Inference Protocol v2 over HTTP, apart from I/O: bytes to checked tensors and back.

JSON and the binary tensor extension: a JSON header of ``Inference-Header-Content-Length`` bytes,
then the raw little-endian tensors in the order of the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

DTYPES = {
    "BOOL": np.dtype("?"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
HEADER_LENGTH = "inference-header-content-length"
INT64 = np.iinfo(np.int64)
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "BOOL": (bool,),
    "INT64": (int,),
    "FP32": (int, float),
    "FP64": (int, float),
}

Tensors = dict[str, NDArray[Any]]


class ProtocolError(ValueError):
    """A request that is answered with ``status`` (4xx or 503) and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Tensor:
    """A tensor that a model takes or gives; -1 in ``shape`` is the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model is called, takes and gives. Optional outputs come only when asked for."""

    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    optional_outputs: tuple[Tensor, ...] = ()

    def metadata(self) -> dict[str, Any]:
        def listed(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
            return [
                {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
                for tensor in tensors
            ]

        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "stagescope",
            "inputs": listed(self.inputs),
            "outputs": listed((*self.outputs, *self.optional_outputs)),
        }


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request that has passed: tensors [n] by input name, and (output name, binary) pairs."""

    id: str | None
    tensors: Tensors
    outputs: tuple[tuple[str, bool], ...]

    def asks_for(self, output: str) -> bool:
        return any(name == output for name, _ in self.outputs)


def parse_infer(
    body: bytes, header_length: str | None, model: ModelSpec, *, max_rows: int
) -> InferRequest:
    """Read and check one infer request; raises ProtocolError (400) with what is wrong."""
    header, binary = _split_body(body, header_length)
    request = _read_json(header)
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        _refuse(f'"id" is {_shown(identity)}; it is a string or left out')
    return InferRequest(
        id=identity,
        tensors=_read_inputs(request.get("inputs"), binary, model, max_rows),
        outputs=_read_outputs(request, model),
    )


def render_infer(
    model: ModelSpec, request: InferRequest, tensors: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON header where binary tensors follow it."""
    specs = {tensor.name: tensor for tensor in (*model.outputs, *model.optional_outputs)}
    described, raw = [], []
    for name, binary in request.outputs:
        datatype = specs[name].datatype
        value = np.ascontiguousarray(tensors[name], dtype=DTYPES[datatype])
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(value.shape)}
        if binary:
            raw.append(value.tobytes())
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = value.ravel().tolist()
        described.append(output)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps({**answer, "outputs": described}).encode()
    return b"".join([header, *raw]), len(header) if raw else None


def _split_body(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    plain = header_length.isascii() and header_length.isdigit() and len(header_length) < 16
    if not plain or int(header_length) > len(body):
        _refuse(
            f"Inference-Header-Content-Length is {_shown(header_length)} and the body has "
            f"{len(body)} bytes; give the length of the JSON part in bytes"
        )
    return body[: int(header_length)], body[int(header_length) :]


def _read_json(header: bytes) -> dict[str, Any]:
    try:
        request = json.loads(header, parse_constant=_no_constant)
    except ProtocolError:
        raise
    except RecursionError:
        _refuse("the JSON is nested too deeply; an inference request has four levels")
    except ValueError as error:
        _refuse(f"the body is not JSON: {str(error)[:200]}")
    if not isinstance(request, dict):
        _refuse(f"the body is {_shown(request)}; an inference request is a JSON object")
    return request


def _no_constant(name: str) -> NoReturn:
    _refuse(f"the body holds {name}, which JSON has not; every number must be finite")


def _read_inputs(given: Any, binary: bytes, model: ModelSpec, max_rows: int) -> Tensors:
    wanted = {tensor.name: tensor for tensor in model.inputs}
    names = ", ".join(wanted)
    if not isinstance(given, list):
        _refuse(f'"inputs" is {_shown(given)}; it is a list of the tensors {names}')
    tensors: Tensors = {}
    at = 0
    for tensor in given:
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str) or name not in wanted:
            what = _shown(tensor if name is None else name)
            _refuse(f"unknown input {what}; {model.name} takes {names}")
        if name in tensors:
            _refuse(f"input {name} is there twice; give it once")
        rows = _rows(tensor, wanted[name], max_rows)
        tensors[name], at = _read_tensor(tensor, wanted[name], rows, binary, at)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        _refuse(f"input {missing[0]} is missing; {model.name} takes {names}")
    if at != len(binary):
        _refuse(
            f"{len(binary) - at} bytes follow the last binary tensor; "
            "the sizes in binary_data_size must add up to the body's rest"
        )
    lengths = {name: len(value) for name, value in tensors.items()}
    if len(set(lengths.values())) > 1:
        _refuse(f"the inputs differ in length ({lengths}); all have shape [n] with one n")
    return tensors


def _rows(tensor: dict[str, Any], wanted: Tensor, max_rows: int) -> int:
    if tensor.get("datatype") != wanted.datatype:
        _refuse(
            f"input {wanted.name} has datatype {_shown(tensor.get('datatype'))}; "
            f"it takes {wanted.datatype}"
        )
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int:
        _refuse(f"input {wanted.name} has shape {_shown(shape)}; it takes [n]")
    if not 1 <= shape[0] <= max_rows:
        _refuse(
            f"input {wanted.name} has {_shown(shape[0])} rows; one request takes 1 to {max_rows}: "
            "send the rest in further requests"
        )
    return int(shape[0])


def _read_tensor(
    tensor: dict[str, Any], wanted: Tensor, rows: int, binary: bytes, at: int
) -> tuple[NDArray[Any], int]:
    """The values [rows] and where the next binary tensor starts."""
    dtype = DTYPES[wanted.datatype]
    parameters = tensor.get("parameters", {})
    if not isinstance(parameters, dict):
        _refuse(f'"parameters" of input {wanted.name} is {_shown(parameters)}; it is an object')
    if "shared_memory_region" in parameters:
        _refuse(f"input {wanted.name} lies in shared memory, which is not served; send the data")
    if "binary_data_size" not in parameters:
        return _from_json(tensor.get("data"), wanted, rows, dtype), at
    size = parameters["binary_data_size"]
    if type(size) is not int or size != rows * dtype.itemsize or at + size > len(binary):
        _refuse(
            f"input {wanted.name} has binary_data_size {_shown(size)}; {rows} values of "
            f"{wanted.datatype} are {rows * dtype.itemsize} bytes, and {len(binary) - at} are left"
        )
    if wanted.datatype == "BOOL" and max(binary[at : at + size]) > 1:
        _refuse(f"input {wanted.name} has a byte other than 0 and 1; BOOL is one byte of 0 or 1")
    return np.frombuffer(binary, dtype=dtype, count=rows, offset=at), at + size


def _from_json(data: Any, wanted: Tensor, rows: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not isinstance(data, list) or len(data) != rows:
        got = f"{len(data)} values" if isinstance(data, list) else _shown(data)
        _refuse(f"input {wanted.name} has data of {got}; its shape says {rows} values in a list")
    types = _JSON_TYPES[wanted.datatype]
    for row, value in enumerate(data):
        if type(value) not in types:
            _refuse(f"{wanted.name}[{row}] is {_shown(value)}; it takes {wanted.datatype}")
        if wanted.datatype == "INT64" and not INT64.min <= value <= INT64.max:
            _refuse(f"{wanted.name}[{row}] is {_shown(value)}, which does not fit INT64")
    try:
        return np.array(data, dtype=dtype)
    except OverflowError:
        _refuse(f"input {wanted.name} has a number that does not fit {wanted.datatype}")


def _read_outputs(request: dict[str, Any], model: ModelSpec) -> tuple[tuple[str, bool], ...]:
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        _refuse(f'"parameters" is {_shown(parameters)}; it is an object')
    default = _flag(parameters, "binary_data_output", False)
    asked = request.get("outputs", [])
    if not isinstance(asked, list):
        _refuse(f'"outputs" is {_shown(asked)}; it is a list of objects with a name')
    if not asked:
        return tuple((tensor.name, default) for tensor in model.outputs)
    known = [tensor.name for tensor in (*model.outputs, *model.optional_outputs)]
    outputs: dict[str, bool] = {}
    for output in asked:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in known or name in outputs:
            what = _shown(output if name is None else name)
            _refuse(f"output {what} is unknown or there twice; {model.name} gives {known}")
        own = output.get("parameters", {})
        if not isinstance(own, dict) or own.keys() - {"binary_data"}:
            _refuse(f'"parameters" of output {name} is {_shown(own)}; it takes binary_data alone')
        outputs[name] = _flag(own, "binary_data", default)
    return tuple(outputs.items())


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse(f"parameter {name} is {_shown(value)}; it is true or false")
    return value


def _refuse(message: str) -> NoReturn:
    raise ProtocolError(400, message)


def _shown(value: Any) -> str:
    """A value as JSON, short and printable whatever it is."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
