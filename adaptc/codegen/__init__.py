"""Plans to source text. Never imports torch: the text does."""
