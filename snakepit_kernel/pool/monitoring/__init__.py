"""How people and programs look at a pool: tables, a live dashboard, a timeline, Prometheus."""
