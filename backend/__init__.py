"""dom0's side of a virtual disk: blkback, its persistent grants, its stores, and its process.

`blkback` and `phases` are the sans-I/O core; `ring_thread` and `dom0` run it in a real process.
"""
