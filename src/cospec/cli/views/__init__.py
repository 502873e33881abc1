"""Views: tables and text that commands print."""
