"""Problems: what is trained or solved, one file per family."""
