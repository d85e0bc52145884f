"""The shared vocabulary: batch types, coordinates and the user's-mistake exception. Imports torch only."""
