"""Below the domains: grant tables, event channels, CPUs, memory, and the process of them.

Nothing here imports from `frontend`, `backend`, `simulator` or `toolstack`.
"""
