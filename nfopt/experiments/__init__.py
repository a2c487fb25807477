"""Experiments of the field: networks that read, embed, judge and edit the nets of a zoo; their baselines."""
