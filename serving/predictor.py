"""From checked tensors to a fraud probability: online features, the exported model, the writes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.passes import move_to_device_pass

from features.contracts import FEATURES
from features.event_table import StoreUnavailableError
from features.online import Labels, Lookup, OnlineFeatures, Payments
from infra.tensor_memory import LiveTensors
from serving.protocol import ModelSpec, ProtocolError, Tensor, Tensors
from serving.stats import BatchTimes

IDENTITY = (
    Tensor("customer_id", "INT64"),
    Tensor("terminal_id", "INT64"),
    Tensor("amount", "FP64"),
    Tensor("event_time", "INT64"),
)
"""What names a payment. ``event_time`` is in ns since 1970, UTC."""
PAYMENTS = "card-fraud"
"""The model that scores payments."""
MAX_AMOUNT = 1e9
MAX_PENDING_ROWS = 100_000


class Counting(TypingProtocol):
    """Where the parts of an answer are counted: the recorder's handle has this shape."""

    def phase(self, name: str) -> AbstractContextManager[Any]: ...

    def count(self, metric: str, n: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The answer to ``Payments``: fraud_probability float32 [n] and features float64 [n, 15]."""

    fraud_probability: NDArray[np.float32]
    features: NDArray[np.float64]
    batch: BatchTimes

    def tensors(self) -> Tensors:
        return {"fraud_probability": self.fraud_probability, "features": self.features}


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer to ``Labels``: whether each payment was found, bool [n]."""

    found: NDArray[np.bool_]

    def tensors(self) -> Tensors:
        return {"found": self.found}


class Model:
    """An exported program over the fifteen features, on one device, by torch's name for it."""

    def __init__(self, program: torch.nn.Module, version: str, device: str) -> None:
        self._program, self.version, self._device = program, version, device
        self.largest_batch_rows = 0
        """Of the batches that were given to it, those of the warm-up included."""
        self.copies: dict[str, int] = {}
        """Bytes copied since it was opened, weights, rows and answers; {} where nothing is."""
        if device != "cpu":
            self.copies = {
                "host_to_device_bytes": self.parameters_bytes(),
                "device_to_host_bytes": 0,
            }

    @staticmethod
    def load(folder: Path, version: str = "1", device: str = "cpu") -> Model:
        """Open ``model.pt2`` and ``model.json``; raises ValueError if it takes other features."""
        about = json.loads((folder / "model.json").read_text())
        takes = tuple(about.get("features", ()))
        if takes != FEATURES:
            raise ValueError(
                f"{folder / 'model.json'} says that the model takes {list(takes)}, and serving "
                f"gives {list(FEATURES)}: train it again with this version"
            )
        program = torch.export.load(folder / "model.pt2")
        if device != "cpu":  # the constants within its code move too, not the weights alone
            program = move_to_device_pass(program, device)
        return Model(program.module(), version, device)

    def parameters_bytes(self) -> int:
        """What its weights and buffers take."""
        return sum(one.nbytes for one in self._kept())

    def predicted_bytes(self, rows: int, block_bytes: int = 1) -> tuple[int, int]:
        """What it keeps on its device, and the most that one call on so many rows makes there.

        The program is run under torch's ``FakeTensorMode``: its tensors have shapes and no
        contents, and nothing is taken of the device. Each counts in whole blocks. What kernels
        take for themselves, cuBLAS's workspace above all, is not in it.
        """
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            kept = [fake.from_tensor(one) for one in self._kept()]
            with torch.inference_mode(), LiveTensors(block_bytes=block_bytes) as live:
                for one in kept:
                    one.view(one.shape)  # so that a view of a weight within the call is not new
                kept_bytes = live.bytes
                self._program(torch.empty(rows, len(FEATURES), device=self._device))
        return kept_bytes, live.peak_bytes - kept_bytes

    def _kept(self) -> list[torch.Tensor]:
        return [*self._program.parameters(), *self._program.buffers()]

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float32]:
        """Fraud probability of each row, float32 [n]; it is there, and no work is left queued."""
        self.largest_batch_rows = max(self.largest_batch_rows, len(features))
        with torch.inference_mode():
            inputs = torch.from_numpy(features).to(torch.float32)
            answer: torch.Tensor = self._program(inputs.to(self._device))
        if self.copies:
            self.copies["host_to_device_bytes"] += inputs.nbytes
            self.copies["device_to_host_bytes"] += answer.nbytes
        return answer.cpu().numpy()


class Predictor:
    """Answers payments and labels in order of arrival; what it has answered it then stores.

    If the store is away when payments are to be written they are kept, up to
    ``MAX_PENDING_ROWS``, and written before anything else is answered.
    """

    def __init__(self, model: Model, online: OnlineFeatures, counting: Counting) -> None:
        self.model, self._online, self._counting = model, online, counting
        self._to_store: tuple[Payments, Lookup] | None = None
        self._pending: list[Payments] = []
        self._never_labelled = 0
        self.payments_lost = 0
        """Answered, and neither stored nor kept any more."""

    @property
    def labels_never_arrived(self) -> int:
        """Payments that left the horizon without a label."""
        return self._online.never_labelled

    def warm_up(self) -> None:
        """Touch store, kernel and model as requests will; nothing is stored."""
        for rows in (1, 2, 64):
            ids = np.arange(rows, dtype=np.int64)
            payments = Payments(
                customer_id=ids, terminal_id=ids, amount=np.ones(rows), time_ns=ids * 10**9
            )
            self.model.predict(self._online.features(payments))

    def check(self) -> None:
        """Raise StoreUnavailableError if the store does not answer."""
        self._online.check()

    def answer(self, jobs: Sequence[Payments | Labels]) -> Sequence[Scores | Found]:
        """Answer jobs that are all payments or all labels, in order.

        Raises StoreUnavailableError.
        """
        self._write_pending()  # what an outage left is no part of this batch's features
        taken_ns = time.monotonic_ns()
        self._counting.count("batches", 1)
        self._counting.count("rows", sum(len(job) for job in jobs))
        payments = [job for job in jobs if isinstance(job, Payments)]
        if payments:
            return self._score(payments, taken_ns)
        with self._counting.phase("labels"):
            labels = [job for job in jobs if isinstance(job, Labels)]
            return [Found(found=self._online.label(job)) for job in labels]

    def _score(self, jobs: Sequence[Payments], taken_ns: int) -> list[Scores]:
        payments = Payments.join(jobs)
        with self._counting.phase("features"):
            lookup = self._online.look_up(payments)
        features_ns = time.monotonic_ns()
        with self._counting.phase("model"):
            probability = self.model.predict(lookup.features)
        batch = BatchTimes(taken_ns, features_ns, time.monotonic_ns())
        self._to_store = (payments, lookup)
        ends = np.cumsum([len(job) for job in jobs]).tolist()
        return [
            Scores(
                fraud_probability=probability[end - len(job) : end],
                features=lookup.features[end - len(job) : end],
                batch=batch,
            )
            for job, end in zip(jobs, ends, strict=True)
        ]

    def settle(self) -> None:
        """Store the payments that were answered last."""
        if self._to_store is None:
            return
        (payments, lookup), self._to_store = self._to_store, None
        try:
            with self._counting.phase("store_write"):
                self._online.append(payments, lookup)
        except StoreUnavailableError:
            self._keep(payments)
            raise
        self._count_never_labelled()

    def _count_never_labelled(self) -> None:
        new = self._online.never_labelled - self._never_labelled
        if new:
            self._counting.count("labels_never_arrived", new)
            self._never_labelled = self._online.never_labelled

    def _keep(self, payments: Payments) -> None:
        self._pending.append(payments)
        while sum(len(kept) for kept in self._pending) > MAX_PENDING_ROWS:
            lost = len(self._pending.pop(0))
            self.payments_lost += lost
            self._counting.count("payments_lost", lost)

    def _write_pending(self) -> None:
        while self._pending:
            self._online.append(self._pending[0])
            self._pending.pop(0)


def payment_spec(version: str) -> ModelSpec:
    """``card-fraud``: payments in, probabilities out, the features only when asked for."""
    return ModelSpec(
        name=PAYMENTS,
        version=version,
        inputs=IDENTITY,
        outputs=(Tensor("fraud_probability", "FP32"),),
        optional_outputs=(Tensor("features", "FP64", (-1, len(FEATURES))),),
    )


def label_spec(version: str) -> ModelSpec:
    """``card-fraud-labels``: late labels in, which payments were found out."""
    return ModelSpec(
        name="card-fraud-labels",
        version=version,
        inputs=(*IDENTITY, Tensor("is_fraud", "BOOL")),
        outputs=(Tensor("found", "BOOL"),),
    )


def read_payments(tensors: Tensors, max_ahead_s: float | None) -> Payments:
    """Check the values of a request; raises ProtocolError naming field, row, value and range."""
    for name in ("customer_id", "terminal_id"):
        _check(name, tensors[name], tensors[name] >= 0, "an id is 0 or more")
    amount = tensors["amount"]
    fits = (amount >= 0) & (amount <= MAX_AMOUNT)
    _check("amount", amount, fits, f"an amount is a number from 0 to {MAX_AMOUNT:.0f}")
    time_ns = tensors["event_time"]
    _check("event_time", time_ns, time_ns >= 0, "it counts ns since 1970-01-01 UTC, from 0 on")
    if max_ahead_s is not None:
        latest = min(time.time_ns() + int(max_ahead_s * 1e9), np.iinfo(np.int64).max)
        rule = f"at most {max_ahead_s:.0f} s ahead of this server's clock, in ns since 1970 UTC"
        _check("event_time", time_ns, time_ns <= latest, rule)
    return Payments(
        customer_id=tensors["customer_id"],
        terminal_id=tensors["terminal_id"],
        amount=amount,
        time_ns=time_ns,
    )


def read_labels(tensors: Tensors, max_ahead_s: float | None) -> Labels:
    """As ``read_payments``, with ``is_fraud``."""
    payments = read_payments(tensors, max_ahead_s)
    return Labels(
        customer_id=payments.customer_id,
        terminal_id=payments.terminal_id,
        amount=payments.amount,
        time_ns=payments.time_ns,
        is_fraud=tensors["is_fraud"],
    )


def _check(name: str, values: NDArray[Any], good: NDArray[np.bool_], rule: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        _refuse(f"{name}[{row}] is {values[row]}; {rule}")


def _refuse(message: str) -> NoReturn:
    raise ProtocolError(400, message)
