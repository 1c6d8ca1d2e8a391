"""Put on PYTHONPATH of a daemon: what takes its safeties away."""
