"""What amoCRM puts on the wire, read without a framework or a database: the one place that knows its formats."""
