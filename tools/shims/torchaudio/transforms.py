"""Empty on purpose: part of the torchaudio placeholder."""
