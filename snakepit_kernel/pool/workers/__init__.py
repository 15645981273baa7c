"""The workers: kernels in slots, started, watched, limited, replaced and ended."""
