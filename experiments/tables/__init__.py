"""Tables from records, a file a subject; ``experiments/render_tables.py`` lists them by name."""
