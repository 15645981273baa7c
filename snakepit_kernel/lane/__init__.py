"""The lane: the direct connection between an owner and a worker, besides the Jupyter channels.

A lane is an AF_UNIX socket pair, inherited by the worker, so that no other process can connect to
it by name; and a page of shared memory that names the call to be interrupted. The calling thread
writes and reads the socket itself; the worker reads it on the main loop of its kernel.
"""
