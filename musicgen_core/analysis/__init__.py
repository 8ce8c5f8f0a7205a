"""Audio analysis of music: tempo, metre, key, slides, style, and distances between sounds.

The functions use only the audio, independently of any model. They take batches of 32 kHz mono, [B, samples], on any
device.

    spectra       log-mel spectrogram, onset strength, spectral centroid
    rhythm        tempo, metre
    harmony       notes and their pitch classes, key, slides
    classifier    a linear classifier of clips, such as for their style or for drums
    distances     SI-SDR between two signals, Fréchet distance between two sets of clips
"""
