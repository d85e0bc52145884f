"""Programs for this project's own upkeep; no run imports them."""
