"""Interfaces of other systems, spoken by Strongroom."""
