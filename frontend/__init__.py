"""A guest: blkfront, its grants and page pool, the load it runs, and its process.

`blkfront` and `blkfront_info`, `grants` and `page_pool` are the sans-I/O core; `driver`, `vbd` and
`guest` run it in a real process.
"""
