"""Measurements of single parts, each one a command: `./run.sh python -m bench.<name>`."""
