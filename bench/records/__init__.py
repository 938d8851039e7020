"""What was measured: the form of a record, its files, rows for figures and tables, comparisons; where a run happens."""
