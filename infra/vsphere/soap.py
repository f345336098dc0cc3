"""Raw SOAP over pyVmomi's own connections: for answers too large for its parser."""

from __future__ import annotations

import io
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any

BUFFER_BYTES = 1 << 18
SOAP_STATUS = (200, 500)
"""SOAP 1.1 binds faults to 500."""


def post(
    stub: Any, envelope: bytes, unreachable: Callable[[Exception], OSError]
) -> io.BufferedReader:
    """Post ``envelope`` and return the answer's body as it comes; close it.

    The body may be a fault, which its reader must know. ``unreachable`` makes the error of a body
    that breaks off while it is read.
    """
    connection = stub.GetConnection()
    headers = {
        "Content-Type": "text/xml; charset=UTF-8",
        "SOAPAction": stub.versionId,
        "Cookie": stub.cookie,
    }
    try:
        connection.request("POST", stub.path, envelope, headers)
        response = connection.getresponse()
        if response.status not in SOAP_STATUS:
            raise HTTPException(f"{response.status} {response.reason}")
    except BaseException:
        connection.close()
        stub.DropConnections()  # as pyVmomi does: the others may be as dead
        raise
    return io.BufferedReader(_Body(stub, connection, response, unreachable), BUFFER_BYTES)


class _Body(io.RawIOBase):
    """The body of one answer; gives its connection back at the end, or closes it."""

    def __init__(
        self,
        stub: Any,
        connection: Any,
        response: HTTPResponse,
        unreachable: Callable[[Exception], OSError],
    ) -> None:
        self._stub, self._connection, self._response = stub, connection, response
        self._unreachable = unreachable
        self._whole = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._response.readinto(buffer)
            if count == 0 and self._response.length:
                raise IncompleteRead(b"", self._response.length)  # http.client says nothing of it
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        self._whole = count == 0
        return count

    def close(self) -> None:
        if self.closed:
            return
        if self._whole and not self._response.will_close:
            self._stub.ReturnConnection(self._connection)
        else:
            self._connection.close()
        super().close()
