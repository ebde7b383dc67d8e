"""The commands of `glbook`, by subject."""
