"""Audio analysis of music: tempo, metre, key, slides, style, and distances between sounds.

The functions use only the audio, independently of any model. They take batches of 32 kHz mono, [B, samples], on any
device.

    features    spectrograms, onset strength; classifier of clips, Fréchet distance between sets of clips, SI-SDR
    rhythm      tempo, metre
    harmony     notes and their pitch classes, key, slides
"""
