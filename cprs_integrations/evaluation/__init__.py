"""How well contexts are compressed: tasks of any length, methods to compare, measures, reports. Needs the extra "bench"."""
