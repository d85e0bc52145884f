"""Maintenance of what the documents publish: commands for those who change the code. Nobody imports this package."""
