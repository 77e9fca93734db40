"""From predictions to scores, baselines, the report and the model card."""
