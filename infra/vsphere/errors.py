"""What can go wrong with a vCenter, in sentences. None of them ever holds a secret."""

from __future__ import annotations

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
