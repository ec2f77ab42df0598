"""Where models meet metrics: full ranking, candidates, fitted temperature, run files, cost."""
