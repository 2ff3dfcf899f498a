"""What happens after the answer: retry, replay, prune."""
