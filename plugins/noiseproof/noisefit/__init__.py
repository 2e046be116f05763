"""NoiseFiT: adaptive hidden-state noise with a hybrid loss (arXiv 2504.03302).

=====================================  =======================================
Adaptive amplitude MAD * w * f         `noise.robust_amplitude`
Hybrid loss alpha CE + (1-alpha) KL    `loss.hybrid_parts`
Branches as rows of one forward        `packed.Packed`, `forward.PackedForward`
=====================================  =======================================

Departures from the authors' code (akhadangi/NoiseFiT, MIT) under preset v2: statistics in fp32 and
over each row's own tokens, KL at the positions that predict a supervised token, teachers detached,
temperature on both sides with T^2, noise relative to 1/sqrt(H) instead of the squared noise_std.
Preset v1 keeps the first release's numbers; only its crashes are mended.
"""
