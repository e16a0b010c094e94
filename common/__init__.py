"""What all ends share: layouts, atomics, the ring, memory, the clients of hypervisor and xenstored.

Nothing here imports from any other package.
"""
