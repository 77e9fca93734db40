"""From predictions to comparisons, the report and the model card."""
