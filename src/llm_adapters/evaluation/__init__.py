"""Answers read from generated text, their scores, and how sure those are."""
