"""xenstored: the store that a machine's domains find each other through.

Pure cores: `paths`, `permissions`, `tree`, `quotas`, `access`, `transactions`, `watches`, `outbox`,
`store`, `session`, `requests`, `connection`; they import in this order. `server` alone has sockets.
"""
