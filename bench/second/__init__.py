"""A second world of captioned pictures and its model, for judgement alone."""
