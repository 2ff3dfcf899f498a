"""The operator: keeps keyrings and the database's schema as its custom resources say."""
