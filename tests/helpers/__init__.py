"""Helpers that tests share: datasets, commands, processes, servers. Import them as `helpers.NAME`."""
