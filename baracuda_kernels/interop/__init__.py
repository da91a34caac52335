"""One adapter per framework. Each is imported by its own name alone, and imports its framework."""
