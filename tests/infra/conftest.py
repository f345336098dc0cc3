"""The simulated vCenter for this room's tests."""

from tests.vcsim_server import own_vcsim, vcsim, vcsim_process

__all__ = ["own_vcsim", "vcsim", "vcsim_process"]
