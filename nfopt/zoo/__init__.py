"""Zoos: thousands of small nets of one architecture, trained side by side and kept in one file."""
