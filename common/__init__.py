"""What all ends share: layouts, atomics, the ring, memory, and the clients of the broker.

Nothing here imports from `hypervisor`, `frontend`, `backend`, `simulator` or `toolstack`.
"""
