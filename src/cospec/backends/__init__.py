"""Engines that roll policies out, behind one protocol."""
