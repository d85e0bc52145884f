"""Run folders → tables and figures. Imports no sibling: it reads files."""
