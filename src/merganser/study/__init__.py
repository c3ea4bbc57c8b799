"""Studies: methods compared over orders and seeds, with their statistics, tables and page."""
