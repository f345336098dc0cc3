"""The vCenter API: the session, finding VMs, clocks, privileges, counters and their samples."""
