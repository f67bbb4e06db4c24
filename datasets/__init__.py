"""The datasets: what is known of them, how their folders are read, and simulated ones."""
