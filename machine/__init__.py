"""The cores put together: builders over given memory, and the processes' mains.

Above the siblings (`hypervisor`, `xenstored`, `frontend`, `backend`), below the simulator.
"""
