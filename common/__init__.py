"""What both ends of the wire share: layouts, atomics, the ring, memory, and the clients of the broker.

Nothing here imports from `hypervisor`, `frontend`, `backend`, `simulator` or `toolstack`.
"""
