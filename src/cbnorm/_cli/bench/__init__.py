"""`cbnorm bench`: what is measured (`cases`), who by (`peers`), how (`measure`, `company`), and what is shown of it."""
