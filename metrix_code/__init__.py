"""The metrics, to import and to run as scripts; the tables and the page made of their scores."""
