"""What can go wrong with a vCenter, in sentences. None of them ever holds a secret."""

from __future__ import annotations

from collections.abc import Iterable

from pyVmomi import vim, vmodl


class VCenterError(OSError):
    """The vCenter could not be used; the sentence says why and what to do."""


class VCenterUnreachable(VCenterError):  # noqa: N818 - a state, as one says it
    """It does not answer, or not as a vCenter does."""


class VCenterUntrusted(VCenterError):  # noqa: N818
    """Its certificate is not the one that the settings trust."""


class VCenterRefused(VCenterError):  # noqa: N818
    """It answers and refuses: wrong credentials, no permission to log in, session lost again."""


class MissingSecret(VCenterRefused):
    """User or password is not where the settings say."""


class NoSuchVm(LookupError):  # noqa: N818
    """A VM is not there, or not to be told from others. ``vms``: those that the sentence names."""

    def __init__(self, told: str, vms: Iterable[str] = ()) -> None:
        super().__init__(told)
        self.vms = tuple(vms)


def vms_in(error: Exception) -> tuple[str, ...]:
    """The VMs that the sentence of an error names."""
    return error.vms if isinstance(error, NoSuchVm) else ()


def sentence(fault: BaseException) -> str:
    """What a fault of the server (or any other error) says, in one line for people."""
    if isinstance(fault, vim.fault.NotAuthenticated):  # before NoPermission, its parent
        return "the session is gone (expired, or ended by an administrator)"
    if isinstance(fault, vim.fault.NoPermission):
        what = fault.privilegeId or "a privilege"
        where = fault.object._GetMoId() if fault.object else "this object"
        return f"the account lacks {what} on {where}"
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        gone = fault.obj._GetMoId() if fault.obj else "the object"
        return f"{gone} is no longer there"
    if isinstance(fault, vmodl.MethodFault):
        name = type(fault).__name__.rpartition(".")[2]
        said = " ".join((fault.msg or "").split())
        return f"{said} ({name})" if said else name
    return " ".join(str(fault).split()) or type(fault).__name__
