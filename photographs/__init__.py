"""One's own pictures and videos, and the browser page: what `derain.py` alone needs."""
