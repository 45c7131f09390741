"""The networks: audio front end, speech encoders, face encoders and decoders, the speech-conditioned denoiser."""
