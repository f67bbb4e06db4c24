"""Datasets: the catalogue of facts, folder layouts, pairs, a download check and simulated sets."""
