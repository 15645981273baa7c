"""Code that runs inside a worker process: its main program, call server and output."""
