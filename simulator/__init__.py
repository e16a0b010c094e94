"""The same front, back and hypervisor in virtual time: one process, one seed, identical runs.

The cores are the real ones on plain memory; what is modelled is the time they take.
"""
