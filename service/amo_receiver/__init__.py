"""Receive amoCRM webhooks durably and keep leads and contacts in Postgres in step."""
