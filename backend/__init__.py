"""dom0's side of a virtual disk: blkback, its persistent grants, its stores, and its process.

`blkback` and `phases` are the sans-I/O core; `vcpu_thread` runs it in a real process.
"""
