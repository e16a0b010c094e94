"""A guest: blkfront, its grants and page pool, the load it runs, and its process.

`blkfront` is the sans-I/O core; `guest` is the only module with sockets, clocks and an exit status.
"""
