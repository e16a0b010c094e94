"""xenstored: the store that a machine's domains find each other through.

Pure cores: `paths`, `permissions`, `tree`, `quotas`, `access`, `transactions`, `watches`, `outbox`,
`session`, `store`, `requests`, `connection`, `schedule`; they import in this order. `server` alone
has sockets and a clock.
"""
