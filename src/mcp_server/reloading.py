"""reloading"""
