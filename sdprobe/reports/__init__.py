"""Run folders → tables and figures. This package reads files and imports neither probes nor data modules."""
