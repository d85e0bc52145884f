"""Run folders → tables and figures. Reads files; knows neither probes nor data modules."""
