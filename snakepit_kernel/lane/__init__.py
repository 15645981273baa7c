"""The lane: the direct connection between an owner and a worker, beside the Jupyter channels.

One AF_UNIX socket pair, inherited by the worker, so there is no name that anybody else could
connect to; and one page of shared memory that names the call to be interrupted. The calling thread
writes and reads the socket itself; the worker reads it on the main loop of its kernel.
"""
