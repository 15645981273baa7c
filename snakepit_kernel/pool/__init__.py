"""The pool: workers behind one queue."""
