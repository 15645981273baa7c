"""Cached environments of packages for the workers of a pool, made once by ``uv`` or pip.

`environment.acquire` finds or makes the environment of some requirements, and keeps it from being
pruned while it is used. The files are in the cache directory of the user, see `cache`.
"""
